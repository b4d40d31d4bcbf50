"""One batch of N requests equals N runs of one request, token for token, for random models and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d3llm_trt import DecodingConfig, SamplingParams
from d3llm_trt.model.config import FAMILIES
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import Answer, cpu_engine, decode

VOCAB, MASK, SLOTS = 96, 92, 5
Request = tuple[list[int], SamplingParams]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], TorchEngine]:
    def make(family: str, seed: int) -> TorchEngine:
        path: Path = tmp_path_factory.mktemp(f"{family}{seed}")
        heads: dict[str, Any] = {"heads": 4, "kv_heads": 2} if seed % 2 else {"heads": 2}
        return cpu_engine(make_checkpoint(path, family, seed=seed, vocab=VOCAB, **heads), SLOTS, 128)

    return {(family, seed): make(family, seed) for family in FAMILIES for seed in range(2)}


@st.composite
def decodings(draw: st.DrawFn, tokens: int) -> DecodingConfig:
    """Any settings of any algorithm that may be asked for ``tokens`` tokens."""
    algorithm = draw(st.sampled_from(ALGORITHMS))
    block_size = draw(st.integers(1, 24))
    changes: dict[str, Any] = {}
    if algorithm == "MultiBlock" and draw(st.booleans()):
        changes["cache_delay_iter"] = draw(st.integers(0, 4))
        changes["refresh_interval"] = draw(st.none() | st.integers(1, 5))
    blocks = -(-tokens // block_size)
    if algorithm == "LowConfidence" and tokens and draw(st.booleans()):
        changes["steps"] = blocks * draw(st.integers(1, tokens // blocks))
    return DecodingConfig(
        algorithm,
        block_size,
        threshold=draw(st.sampled_from(("auto", None, 0.05, 0.3, 0.8, 1.5))),
        block_add_threshold=draw(st.sampled_from((0.0, 0.1, 0.5, 1.0))),
        decoded_token_threshold=draw(st.sampled_from((0.1, 0.95, 1.0))),
        early_stop=draw(st.booleans()),
        **changes,
    )


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A prompt, sometimes with masks in it, and settings."""
    tokens = draw(st.integers(0, 40))
    prompt = draw(st.lists(st.integers(0, VOCAB - 1).filter(lambda i: i != MASK), min_size=1, max_size=20))
    for place in draw(st.sets(st.integers(0, len(prompt) - 1), max_size=3)):
        if draw(st.booleans()):
            prompt[place] = MASK
    if tokens == 0 and MASK not in prompt:
        prompt.append(MASK)
    params = SamplingParams(
        max_tokens=tokens,
        temperature=draw(st.sampled_from((0.0, 0.0, 0.7))),
        seed=draw(st.integers(0, 1 << 62)),
        end_id=draw(st.none() | st.integers(0, VOCAB - 10)),
        decoding=draw(decodings(tokens)),
        top_p=draw(st.sampled_from((1.0, 0.9, 0.3))),
        top_k=draw(st.sampled_from((0, 0, 1, 7))),
        min_tokens=draw(st.integers(0, tokens)),
        stop_token_ids=draw(st.lists(st.integers(0, VOCAB - 10), max_size=3)),
    )
    return prompt, params


def assert_sound(request: Request, answer: Answer) -> None:
    prompt, params = request
    assert MASK not in answer.canvas and len(answer.canvas) == len(prompt) + params.max_tokens
    for given_id, token, step in zip(prompt, answer.canvas, answer.commit_steps, strict=False):
        assert (step > 0) if given_id == MASK else (step == -1 and token == given_id)
    assert all(0 < step <= answer.passes for step in answer.commit_steps[len(prompt) :])
    assert answer.passes <= len(answer.canvas)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(family=st.sampled_from(FAMILIES), seed=st.integers(0, 1), batch=st.lists(requests(), min_size=1, max_size=SLOTS))
def test_a_batch_equals_its_requests_alone(
    engines: dict[tuple[str, int], TorchEngine], family: str, seed: int, batch: list[Request]
) -> None:
    engine = engines[family, seed]
    together = decode(engine, batch)
    for request, answer in zip(batch, together, strict=True):
        assert_sound(request, answer)
        assert decode(engine, [request])[0] == answer
