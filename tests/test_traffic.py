"""The benchmark of random traffic finds what it looks for: its requests, its checks, and its explanations."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_models import CHECKPOINTS, ROOT

from d3llm_trt import LLM, BuildConfig, build_engine
from d3llm_trt.manifest import load_manifest
from d3llm_trt.runtime.loading import load_engine

LIMIT = 256


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("traffic", ROOT / "benchmarks" / "traffic.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["traffic"] = module
    spec.loader.exec_module(module)
    return module


traffic: Any = load()


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BuildConfig(dtype="float32", max_batch_size=4, max_seq_len=LIMIT)
    return build_engine(CHECKPOINTS["llada"], tmp_path_factory.mktemp("traffic") / "engine", config)


@pytest.fixture(scope="module")
def llm(engine_dir: Path) -> Iterator[LLM]:
    with LLM(engine_dir, device="cpu") as opened:
        yield opened


@pytest.fixture
def asker(llm: LLM) -> Any:
    config = llm.spec.model_config
    return traffic.Asker(0, LIMIT, config.vocab_size, config.mask_token_id, llm.tokenizer)


def good_asks(asker: Any, count: int) -> list[Any]:
    asks = (asker.ask(f"test-{number}") for number in range(10 * count))
    return [ask for ask in asks if ask.error is None and ask.settings["max_tokens"] < 60][:count]


def test_every_bad_request_is_refused_with_its_error(llm: LLM, asker: Any) -> None:
    assert len(asker.bad) > 50
    for ask in asker.bad:
        with pytest.raises(ask.error):
            llm.submit(ask.prompt, ask.params, lambda _: None)


def test_requests_follow_from_their_names(asker: Any) -> None:
    assert [asker.ask("a-1"), asker.ask("a-2")] == [asker.ask("a-1"), asker.ask("a-2")]
    assert asker.ask("a-1") != replace(asker, seed=1).ask("a-1")


def test_noise_explains_what_it_caused_and_nothing_else(engine_dir: Path, llm: LLM, asker: Any) -> None:
    engine = load_engine(engine_dir, load_manifest(engine_dir), device=torch.device("cpu"), max_batch_size=1)
    asks = good_asks(asker, 12)
    with LLM.over(traffic.Shaken(engine, 2.0**-6), llm.tokenizer) as shaken:
        noises = []
        for ask in asks:
            alone, other = (traffic.Final.of(model.generate([ask.prompt], ask.params)[0]) for model in (llm, shaken))
            if traffic.first_difference(alone, other) is not None:
                noises.append(traffic.deciding_noise(engine, asker, ask, alone, other))
    assert len(noises) > 2 and all(noise is not None and noise <= 2.0**-4 for noise in noises)


def test_a_wrong_token_is_not_explained(engine_dir: Path, llm: LLM, asker: Any) -> None:
    engine = load_engine(engine_dir, load_manifest(engine_dir), device=torch.device("cpu"), max_batch_size=1)
    ask = traffic.Ask("", "chat", traffic.chat("Raj is 9 years old. How old will Raj be in 8 years?"),
                      {"max_tokens": 48, "decoding": {"algorithm": "LowConfidence"}})  # fmt: skip
    alone = traffic.Final.of(llm.generate([ask.prompt], ask.params)[0])
    wrong = replace(alone, token_ids=[alone.token_ids[0] + 1, *alone.token_ids[1:]])
    noise = traffic.deciding_noise(engine, asker, ask, alone, wrong)
    assert noise is not None and noise > traffic.EXPLAINING_NOISE["bfloat16"]


@pytest.mark.parametrize(("grown", "flat"), [(0, True), (100 << 20, False)])
def test_growth_compares_the_second_and_the_last_quarter(grown: int, flat: bool) -> None:
    samples = [traffic.Sample(second, 0, 10**9 + (grown if second > 60 else 0), 5) for second in range(1, 101)]
    samples[0] = replace(samples[0], rss=1)
    found = traffic.growth(samples, 100.0)
    assert found["rss"]["flat"] == flat and found["rss"]["growth"] == grown and found["threads"]["flat"]


def test_a_retracted_or_stuck_answer_is_found(llm: LLM) -> None:
    ledger = traffic.Ledger(5, 0)
    ask = traffic.Ask(
        "a", "text", "hi", {"max_tokens": 9, "ignore_eos": True, "decoding": {"algorithm": "EntropyThreshold"}}
    )
    outputs = list(llm.generate_stream("hello", replace(ask.params, max_tokens=9)))
    ticket = traffic.Ticket(ledger, ask)
    ticket.see(replace(outputs[-1], finished=False))
    ticket.see(replace(outputs[-1], outputs=[replace(outputs[-1].outputs[0], text="other")]))
    traffic.Ticket(ledger, replace(ask, name="b"))
    ledger.declare_stuck(-math.inf)
    assert set(ledger.problems) == {"retracted", "stuck"} and ledger.counts == {"answered": 1, "stuck": 1}
