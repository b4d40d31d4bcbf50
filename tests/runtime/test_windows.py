"""Windows at both ends (B.8a): against a reference in float64, and the identities that must hold."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest

from d3llm_trt import DecodingConfig, SamplingParams
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.errors import ConfigError
from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from tests.support.engines import Answer, cpu_engine, decode
from tests.support.golden_cases import GOLDEN
from tests.support.windows_reference import Reference

MODELS = ("llada_tiny", "dream_tiny")
LENGTH = 200


@pytest.fixture(scope="module", params=MODELS)
def engine(request: pytest.FixtureRequest) -> TorchEngine:
    return cpu_engine(GOLDEN / request.param, 6, LENGTH)


def random_decoding(dice: random.Random) -> DecodingConfig:
    own: dict[str, Any] = {}
    if dice.random() < 0.8:
        own = {
            "cache_delay_iter": dice.choice([0, 1, 2, 3]),
            "full_settling": dice.random() < 0.5,
            "published_shift": dice.random() < 0.3,
        }
    own["window_ahead"] = dice.choice([None, 0, 0, 1, 2, 1 << 20])
    if own["window_ahead"] is not None or "cache_delay_iter" in own:
        own["refresh_interval"] = dice.choice([None, None, 2, 5])
    return DecodingConfig(
        "MultiBlock",
        block_size=dice.choice([4, 8, 16]),
        threshold=dice.choice([0.0, 2.0, 4.5]),
        block_add_threshold=dice.choice([0.1, 0.5]),
        decoded_token_threshold=dice.choice([0.5, 0.95]),
        early_stop=False,
        **own,
    )


def random_request(seed: int, vocab: int) -> tuple[list[int], SamplingParams]:
    dice = random.Random(seed)
    prompt = [dice.randrange(vocab // 2) for _ in range(dice.choice([3, 20, 50]))]
    return prompt, SamplingParams(max_tokens=dice.choice([17, 32, 60]), decoding=random_decoding(dice))


def test_windows_equal_the_reference_in_float64(engine: TorchEngine) -> None:
    model = next(name for name in MODELS if name.startswith(engine.spec.model_config.family))
    checkpoint = open_checkpoint(GOLDEN / model)
    weights = dict(checkpoint.packed_tensors())
    kinds = set()
    for seed in range(36):
        prompt, params = random_request(seed, checkpoint.config.vocab_size)
        (answer,) = decode(engine, [(prompt, params)])
        canvas, windows = Reference(checkpoint.config, weights, params.decoding).decode(prompt, params.num_tokens)
        assert answer.canvas == canvas, (seed, params.decoding)
        assert answer.windows == [end - start for start, end in windows], (seed, params.decoding)
        kinds |= {(start > 0, end < len(canvas)) for start, end in windows}
    assert kinds == {*itertools.product([False, True], repeat=2)}


def test_ragged_batches_of_windows_equal_their_requests_alone(engine: TorchEngine) -> None:
    for first in range(0, 24, 6):
        batch = [random_request(100 + first + number, engine.spec.model_config.vocab_size) for number in range(6)]
        alone = [decode(engine, [request])[0] for request in batch]
        assert decode(engine, batch) == alone


def answers(engine: TorchEngine, **changes: Any) -> list[Answer]:
    requests = [random_request(seed, engine.spec.model_config.vocab_size) for seed in range(200, 206)]
    changed = []
    for prompt, params in requests:
        plain = dataclasses.replace(params.decoding, **changes)
        changed.append((prompt, dataclasses.replace(params, decoding=plain)))
    return decode(engine, changed)


PLAIN = {"window_ahead": None, "full_settling": True, "published_shift": False, "refresh_interval": None}


def test_windows_far_ahead_are_windows_to_the_end(engine: TorchEngine) -> None:
    for cached in (
        {"cache_delay_iter": 1},
        {"cache_delay_iter": 2, "published_shift": True},
        {"cache_delay_iter": None},
    ):
        published = answers(engine, **{**PLAIN, **cached})
        assert answers(engine, **{**PLAIN, **cached, "window_ahead": 1 << 20}) == published
        always_full = all(size == len(answer.canvas) for answer in published for size in answer.windows)
        assert always_full == (cached["cache_delay_iter"] is None)


def test_nothing_ahead_and_no_settling_take_fewer_rows(engine: TorchEngine) -> None:
    def rows(**changes: Any) -> float:
        found = answers(engine, **{**PLAIN, "cache_delay_iter": 1, "threshold": 0.0, **changes})
        return sum(sum(answer.windows) / answer.passes for answer in found)

    assert rows(window_ahead=0, full_settling=False) < rows(window_ahead=0) < rows()
    assert rows(full_settling=False) < rows()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"window_ahead": -1, "algorithm": "MultiBlock"}, "window_ahead is -1; allowed: None or an integer in 0"),
        ({"window_ahead": 1}, "window_ahead is 1, but FullAttnMultiBlock does not use it"),
        ({"full_settling": False, "algorithm": "MultiBlock"}, "full_settling is False, which needs cache_delay_iter"),
        ({"published_shift": True, "algorithm": "MultiBlock"}, "published_shift is True, which needs cache_delay_iter"),
        ({"full_settling": 0, "algorithm": "MultiBlock"}, "full_settling is 0; allowed: True or False"),
        ({"refresh_interval": 2, "algorithm": "MultiBlock"}, "refresh_interval needs cache_delay_iter or window_ahead"),
    ],
)
def test_windows_that_make_no_sense_are_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        DecodingConfig(**changes)
