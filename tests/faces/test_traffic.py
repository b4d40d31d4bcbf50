"""The benchmark of random traffic finds what it looks for: its requests, its checks, and its explanations."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.random_traffic import requests
from benchmarks.random_traffic.alone import ROUNDING, Disturbed, compare, deciding_noise, first_decision
from benchmarks.random_traffic.answers import independent
from benchmarks.random_traffic.clients import Clients
from benchmarks.random_traffic.ledger import Ledger, Ticket
from benchmarks.random_traffic.memory import amounts, growth
from benchmarks.random_traffic.requests import Ask, bad_asks, make_ask
from d3llm_trt import LLM, BuildConfig, RequestOutput, build_engine
from d3llm_trt.errors import RequestError
from d3llm_trt.manifest import load_manifest
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.loading import load_engine
from tests.support.tiny_models import CHATS, CHECKPOINTS

LIMIT = 256
CPU = torch.device("cpu")
HELLO = Ask("a", "text", "hello", {"max_tokens": 9, "ignore_eos": True, "decoding": {"algorithm": "EntropyThreshold"}})


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BuildConfig(dtype="float32", max_batch_size=4, max_seq_len=LIMIT)
    return build_engine(CHECKPOINTS["llada"], tmp_path_factory.mktemp("traffic") / "engine", config)


@pytest.fixture(scope="module")
def llm(engine_dir: Path) -> Iterator[LLM]:
    with LLM(engine_dir, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(engine_dir: Path) -> Engine:
    return load_engine(engine_dir, load_manifest(engine_dir), device=CPU, max_batch_size=1)


def short_asks(llm: LLM, count: int) -> list[Ask]:
    asks = (make_ask(llm, 0, f"test-{number}") for number in range(20 * count))
    return [ask for ask in asks if ask.error is None and ask.settings["max_tokens"] < 20][:count]


def answer(llm: LLM, ask: Ask) -> RequestOutput:
    return independent(llm.generate([ask.prompt], ask.params)[0])


def test_every_bad_request_is_refused_with_its_error(llm: LLM) -> None:
    asks = bad_asks(llm.spec)
    assert len(asks) == len({ask.kind for ask in asks}) > 50
    for ask in asks:
        assert ask.error is not None
        with pytest.raises(ask.error):
            llm.submit(ask.prompt, ask.params, lambda _: None)


def test_requests_follow_from_their_names(llm: LLM) -> None:
    assert make_ask(llm, 0, "a-1") == make_ask(llm, 0, "a-1") != make_ask(llm, 1, "a-1")


def test_noise_explains_what_it_caused(engine: Engine, llm: LLM) -> None:
    found = []
    for ask in short_asks(llm, 12):
        with LLM.over(Disturbed(engine, 1, 2.0**-5, 99), llm.tokenizer) as disturbed:
            alone, together = answer(llm, ask), answer(disturbed, ask)
        if decision := first_decision(together, alone):
            found.append(deciding_noise(engine, llm, ask, alone, decision, 2.0**-4))
    assert len(found) > 2 and max(found) < math.inf


def test_noise_does_not_explain_a_wrong_token(engine: Engine, llm: LLM) -> None:
    ask = replace(HELLO, prompt=CHATS[1], settings={"max_tokens": 32, "decoding": {}})
    alone = answer(llm, ask)
    ids = alone.outputs[0].token_ids
    wrong = replace(alone, outputs=[replace(alone.outputs[0], token_ids=[ids[0] + 1, *ids[1:]])])
    decision = first_decision(wrong, alone)
    assert decision["place"] == 0 and decision["token_together"] == ids[0] + 1
    assert deciding_noise(engine, llm, ask, alone, decision, ROUNDING["bfloat16"]) == math.inf


@pytest.mark.parametrize(("other", "problems"), [({}, 0), ({"text": "other"}, 1)])
def test_kept_answers_are_compared_with_those_alone(
    llm: LLM, engine_dir: Path, other: dict[str, str], problems: int
) -> None:
    ledger, output = Ledger(2), answer(llm, HELLO)
    for number in range(5):
        changed = replace(output, outputs=[replace(output.outputs[0], **other)])
        ledger.keep(replace(HELLO, name=str(number), lot=float(number)), changed)
    compared = compare(llm, engine_dir, ledger, ROUNDING["bfloat16"], 60.0)
    assert (compared["asked"], compared["different"]) == (2, 2 * problems)
    assert ledger.problems["different alone"] == 2 * problems


@pytest.mark.parametrize(("grown", "flat"), [(0, True), (100 << 20, False)])
def test_growth_compares_the_second_and_the_last_quarter(grown: int, flat: bool) -> None:
    samples = [{"seconds": s, "rss": 10**9 + (grown if s > 60 else 0), "threads": 5} for s in range(1, 101)]
    found = growth([samples[0] | {"rss": 1}, *samples[1:]], 100.0)
    assert found["rss"]["flat"] == flat and found["rss"]["growth"] == grown and found["threads"]["flat"]
    assert amounts(CPU).keys() == found.keys()


def test_a_retracted_a_stuck_a_lost_and_a_wrong_answer_are_found(llm: LLM) -> None:
    ledger = Ledger(5)
    outputs = list(llm.generate_stream(HELLO.prompt, HELLO.params))
    other = replace(outputs[-1], outputs=[replace(outputs[-1].outputs[0], text="other")])
    with Ticket(ledger, HELLO) as ticket:
        ticket.see(replace(outputs[-1], finished=False))
        ticket.see(other)
        ticket.see(other)
    with Ticket(ledger, replace(HELLO, name="b")):
        ledger.declare_stuck(-math.inf)
    with Ticket(ledger, replace(HELLO, name="c")) as ticket:
        ticket.end("lost")
    with Ticket(ledger, replace(HELLO, name="d", error=RequestError)):
        raise TypeError
    with Ticket(ledger, replace(HELLO, name="e")):
        raise RequestError
    assert ledger.problems.keys() == {
        "retracted", "output after it was answered", "stuck", "lost", "good request failed",
        "bad request raised TypeError, not RequestError",
    }  # fmt: skip
    assert ledger.counts == {"answered": 1, "stuck": 1, "lost": 1, "refused": 2} and not ledger.open


def test_clients_of_every_kind_end_all_that_they_ask(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_answer_length", lambda rng, fits: rng.randint(1, min(fits, 4)))
    ledger = Ledger(5)
    threads = Clients(llm, ledger, seed=0, until=time.perf_counter() + 1.0).start()
    for thread in threads:
        thread.join()
    assert not ledger.details and not ledger.open and len(ledger.kept) == 5
    assert ledger.counts.keys() == {"answered", "cancelled", "refused"}
