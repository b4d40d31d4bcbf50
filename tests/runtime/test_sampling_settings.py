"""What SamplingParams ask of a decoder: end ids, min_tokens, limits, log probabilities, seeds, and masks alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.errors import RequestError
from d3llm_trt.model.config import FAMILIES, Family
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.decoding.state import DecodingState, new_request
from tests.support.commit_states import EOS, MASK, VOCAB, config_of
from tests.support.engines import PositionEngine, decode, decoder_over
from tests.support.tiny_models import CHATS, CHECKPOINTS

PROMPT = [1, 2, 3]
LENGTH = 48


def engine_of(family: Family = "llada", peak: float = 6.0, seed: int = 0) -> PositionEngine:
    table = torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(seed)) * peak
    table[:, [EOS, MASK]] -= 2 * peak
    return PositionEngine(config_of(family), table)


def params(algorithm: str = "FullAttnMultiBlock", tokens: int = 30, **changes: Any) -> SamplingParams:
    early = {"early_stop": changes.pop("early_stop")} if "early_stop" in changes else {}
    return SamplingParams(tokens, decoding=DecodingConfig(algorithm, block_size=8, **early), **changes)


def generated(engine: PositionEngine, settings: SamplingParams) -> list[int]:
    (answer,) = decode(engine, [(PROMPT, settings)])
    return answer.canvas[len(PROMPT) :]


# End ids and min_tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_answer_ends_at_the_first_of_its_end_ids(algorithm: str, family: Family) -> None:
    engine = engine_of(family)
    whole = generated(engine, params(algorithm))
    stops = [whole[9], whole[14], whole[20]]
    first = min(whole.index(stop) for stop in stops)
    stopped = generated(engine, params(algorithm, stop_token_ids=stops))
    assert stopped[: first + 1] == whole[: first + 1]
    assert set(stopped[first + 1 :]) == {EOS}
    replaced = generated(engine, params(algorithm, end_id=whole[14], stop_token_ids=stops[:1]))
    assert set(replaced[1 + min(whole.index(stop) for stop in stops[:2]) :]) == {whole[14]}
    assert generated(engine, params(algorithm, stop_token_ids=stops, early_stop=False)) == whole


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_end_id_stands_before_min_tokens(algorithm: str, family: Family, temperature: float) -> None:
    engine = engine_of(family, peak=2.0)
    engine.table[:, [EOS, 5]] += 9.0
    both = {"stop_token_ids": [5], "temperature": temperature, "seed": 3}
    assert generated(engine, params(algorithm, **both))[0] in (EOS, 5)
    for count in (1, 8, 13, 30):
        answer = generated(engine, params(algorithm, min_tokens=count, **both))
        assert not {EOS, 5, MASK} & {*answer[:count]}
        assert count == 30 or answer[count] in (EOS, 5)
    other = generated(engine, params(algorithm, min_tokens=6, ignore_eos=True, **both))
    assert 5 not in other[:6] and EOS in other[:6]


def test_masks_in_the_prompt_may_be_end_ids() -> None:
    engine = engine_of(peak=1.0)
    engine.table[:, EOS] += 9.0
    (answer,) = decode(engine, [([1, MASK, 2], params(min_tokens=4))])
    assert answer.canvas[1] == EOS and EOS not in answer.canvas[3:7] and answer.canvas[7] == EOS


def test_too_many_end_ids_are_refused() -> None:
    config = config_of("llada")
    new_request(config, PROMPT, params(stop_token_ids=[EOS, *range(7)]))
    new_request(config, PROMPT, params(stop_token_ids=list(range(8)), ignore_eos=True))
    with pytest.raises(RequestError, match=r"are 9 ids; allowed: at most 8 together; leave some out"):
        new_request(config, PROMPT, params(stop_token_ids=list(range(8))))


# Limits


def test_limits_are_each_requests_own() -> None:
    engine = engine_of(peak=1.0)
    best = engine.table.index_fill(1, torch.tensor([MASK]), -torch.inf).argsort(1, descending=True).tolist()
    hot = {"temperature": 4.0, "early_stop": False}
    settings = [
        params(top_k=1, **hot),
        params(top_k=3, seed=1, **hot),
        params(top_p=1e-9, seed=2, **hot),
        params(seed=3, **hot),
    ]
    answers = decode(engine, [(PROMPT, asked) for asked in settings])
    ranks = [[best[at].index(answer.canvas[at]) for at in range(3, 33)] for answer in answers]
    assert set(ranks[0]) == set(ranks[2]) == {0}
    assert set(ranks[1]) == {0, 1, 2} and max(ranks[3]) > 5
    for asked, answer in zip(settings, answers, strict=True):
        assert decode(engine, [(PROMPT, asked)])[0].canvas == answer.canvas


# Log probabilities


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_log_probabilities_are_those_at_temperature_1(algorithm: str, family: Family) -> None:
    engine = engine_of(family, peak=2.0)
    decoder = decoder_over(engine)
    for slot, changes in enumerate(({}, {"temperature": 3.0, "top_k": 4, "seed": 5})):
        decoder.admit(slot, [1, MASK, 3], params(algorithm, early_stop=False, **changes))
    while running := [slot for slot in (0, 1) if not decoder.reports[slot].done]:
        decoder.step(running)
    for (canvas, steps), logprobs in zip(decoder.read([0, 1]), decoder.read_logprobs([0, 1]), strict=True):
        wanted = engine.table[: len(canvas)].log_softmax(1).gather(1, torch.tensor(canvas)[:, None])[:, 0]
        committed = torch.tensor(steps) > 0
        assert torch.allclose(torch.tensor(logprobs)[committed], wanted[committed], atol=1e-5)
        assert logprobs[0] == logprobs[2] == 0.0
    assert decoder.read_logprobs([]) == []


def test_equal_states_may_hold_nan() -> None:
    state = DecodingState.empty(2, 4, torch.device("cpu"))
    state.progress.logprobs[1, 2] = torch.nan
    other = state.clone()
    assert state.same_progress(other)
    other.progress.logprobs[1, 2] = 1.0
    assert not state.same_progress(other)


# Masks alone


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_masks_of_a_prompt_are_filled_in_alone(algorithm: str, family: Family, temperature: float) -> None:
    engine, prompt = engine_of(family), [4, MASK, 5, MASK, MASK, EOS, MASK]
    (answer,) = decode(engine, [(prompt, params(algorithm, 0, temperature=temperature))])
    assert len(answer.canvas) == len(prompt) and MASK not in answer.canvas
    assert [answer.canvas[at] for at in (0, 2, 5)] == [4, 5, EOS]
    assert 0 < answer.passes <= 4
    if temperature == 0:
        best = engine.table.index_fill(1, torch.tensor([MASK]), -torch.inf).argmax(1).tolist()
        assert [answer.canvas[at] for at in (1, 3, 4, 6)] == [best[at] for at in (1, 3, 4, 6)]


# Through LLM


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(CHECKPOINTS["llada"], device="cpu", max_batch_size=3) as opened:
        yield opened


def test_a_drawn_seed_is_told_and_gives_the_same_again(llm: LLM) -> None:
    hot = SamplingParams(32, temperature=5.0, ignore_eos=True)
    first, second = (output.outputs[0] for output in llm.generate([CHATS[0]] * 2, hot))
    assert first.seed is not None and second.seed is not None
    assert first.seed != second.seed and first.token_ids != second.token_ids
    (again,) = llm.generate([CHATS[0]], SamplingParams(32, temperature=5.0, ignore_eos=True, seed=first.seed))
    assert again.outputs[0] == first
    (cold,) = llm.generate([CHATS[0]], SamplingParams(8))
    assert cold.outputs[0].seed is None


def test_log_probabilities_come_where_they_were_asked_for(llm: LLM) -> None:
    settings = [SamplingParams(72, logprobs=logprobs) for logprobs in (None, False, True, 0, 1)]
    off, no, *told = (output.outputs[0] for output in llm.generate([CHATS[0]] * 5, settings))
    assert off.logprobs is no.logprobs is off.cumulative_logprob is None
    for answer in told:
        assert answer.token_ids == off.token_ids and answer.logprobs is not None
        assert len(answer.logprobs) == len(answer.token_ids) and all(-30 < logprob <= 0 for logprob in answer.logprobs)
        assert answer.cumulative_logprob == sum(answer.logprobs)
    *_, last = (part.outputs[0] for part in llm.generate_stream(CHATS[0], settings[2]))
    assert last == told[0]


def test_stop_ids_and_min_tokens_of_an_answer(llm: LLM) -> None:
    (whole,) = llm.generate([CHATS[0]], SamplingParams(72))
    ids = whole.outputs[0].token_ids
    (stopped,) = llm.generate([CHATS[0]], SamplingParams(72, stop_token_ids=[ids[6], ids[-1]]))
    answer = stopped.outputs[0]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", ids[6])
    assert answer.token_ids == ids[: ids.index(ids[6]) + 1]
    (longer,) = llm.generate([CHATS[0]], SamplingParams(72, min_tokens=len(ids) + 5))
    assert len(longer.outputs[0].token_ids) > len(ids) + 5
    assert whole.outputs[0].stop_reason is None


def test_masks_alone_through_llm(llm: LLM) -> None:
    mask = llm.spec.model_config.mask_token_id
    filled, refused = llm.generate(
        [{"prompt_token_ids": [5, mask, 7]}, {"prompt_token_ids": [5, 6, 7]}], SamplingParams(0)
    )
    assert filled.error is None and mask not in filled.prompt_token_ids and filled.finished
    assert filled.outputs[0].token_ids == [] and filled.outputs[0].finish_reason == "length"
    assert isinstance(refused.error, RequestError)
    assert str(refused.error) == (
        "max_tokens is 0 and the prompt has no mask id, so there is nothing to fill in; raise max_tokens"
    )


# What is allowed


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"max_tokens": -1}, "max_tokens is -1; allowed: an integer of 0 or more"),
        ({"temperature": 1e39}, r"temperature is 1e\+39; allowed: 0, or a number in 1.18e-38..3.4e\+38"),
        ({"temperature": 1e-39}, "temperature is 1e-39"),
        ({"temperature": 5e-324}, "temperature is 5e-324"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"seed": -1}, "seed is -1; allowed: None or an integer in"),
        ({"seed": 1 << 63}, "seed is 9223372036854775808"),
        ({"seed": True}, "seed is True"),
        ({"top_p": 0}, "top_p is 0; allowed: a number above 0, up to 1"),
        ({"top_p": 1.0001}, "top_p is 1.0001"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_k": -2}, "top_k is -2; allowed: a number of tokens, or 0 or -1 for all"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"min_tokens": -1}, "min_tokens is -1; allowed: an integer in 0..max_tokens, 256"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens is 9; allowed: an integer in 0..max_tokens, 8"),
        ({"stop_token_ids": 5}, "stop_token_ids is 5; allowed: None or a list of token ids"),
        ({"stop_token_ids": [-1]}, r"stop_token_ids is \[-1\]"),
        ({"stop_token_ids": ["5"]}, r"stop_token_ids is \['5'\]"),
        ({"logprobs": 2}, "logprobs is 2; allowed: None, True, False, 0 or 1: only the committed tokens' are known"),
        ({"logprobs": "yes"}, "logprobs is 'yes'"),
    ],
)
def test_what_is_not_allowed_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        SamplingParams(**changes)


def test_numbers_of_other_libraries_become_pythons() -> None:
    wanted = SamplingParams(7, 0.5, 3, True, 9, top_p=0.25, top_k=4, min_tokens=2, stop_token_ids=[1, 2], logprobs=True)
    numpy = SamplingParams(
        np.int64(7), np.float32(0.5), np.uint8(3), np.bool_(True), np.int32(9), top_p=np.float64(0.25),
        top_k=np.array(4), min_tokens=np.int16(2), stop_token_ids=np.array([1, 2]), logprobs=np.True_,
    )  # fmt: skip
    tensors = SamplingParams(
        torch.tensor(7), torch.tensor(0.5), torch.tensor(3), torch.tensor(True), torch.tensor(9),
        top_p=torch.tensor(0.25), top_k=torch.tensor(4), min_tokens=torch.tensor(2),
        stop_token_ids=torch.tensor([1, 2]), logprobs=torch.tensor(True),
    )  # fmt: skip
    assert wanted == numpy == tensors
    assert all(type(value) in (int, float, bool, tuple, type(None), DecodingConfig) for value in vars(tensors).values())
    assert DecodingConfig(block_size=np.int64(8), threshold=torch.tensor(0.5)) == DecodingConfig(
        block_size=8, threshold=0.5
    )


def test_what_may_be_left_out() -> None:
    assert SamplingParams(stop_token_ids=None) == SamplingParams() == SamplingParams(seed=None, top_k=0, top_p=1)
    for settings in (
        SamplingParams(temperature=2.0**-126),
        SamplingParams(temperature=3.4e38),
        SamplingParams(top_k=-1),
    ):
        settings_row, _ = new_request(config_of("llada"), PROMPT, settings)
        assert bool(settings_row.temperature.isfinite()) and int(settings_row.top_k) == 0
