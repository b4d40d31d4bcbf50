"""Tokens, passes, windows and logits of the published decoders and networks, reproduced in float32 on the CPU."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from safetensors.torch import load_file

from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from tests.support.engines import Answer, cpu_engine, decode
from tests.support.golden_batches import full_batch
from tests.support.golden_cases import GOLDEN, Case, read_cases

MODELS = ("llada_tiny", "dream_tiny")
CASES = read_cases()
GROUPS = [list(group) for _, group in groupby(CASES, key=lambda case: case.id)]
TOLERANCE = 5e-4


def assert_same(case: Case, answer: Answer) -> None:
    count = case.compared
    generated = answer.canvas[len(case.prompt) :]
    assert generated[:count] == case.generated[:count]
    end = case.params.end_id
    if case.params.decoding.early_stop and end in generated:
        assert set(generated[count:]) <= {end}


def published_steps(case: Case) -> list[int]:
    """The pass that last wrote each generated position of a case with one prompt."""
    steps = [0] * len(case.generated)
    for number, commits in enumerate(case.golden["expected"]["commits"], start=1):
        for position, _ in commits:
            steps[position - len(case.prompt)] = number
    return steps


@pytest.fixture(scope="module")
def engines() -> dict[str, TorchEngine]:
    return {model: cpu_engine(GOLDEN / model, 1) for model in MODELS}


def test_every_algorithm_has_cases() -> None:
    kinds = {(case.params.decoding.algorithm, case.model) for case in CASES}
    assert len(kinds) == 8
    assert any(case.params.decoding.cache_delay_iter is not None for case in CASES if case.model == "dream_tiny")


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0].id)
def test_alone(group: list[Case], engines: dict[str, TorchEngine]) -> None:
    answers = [decode(engines[case.model], [(case.prompt, case.params)])[0] for case in group]
    for case, answer in zip(group, answers, strict=True):
        assert_same(case, answer)
    slowest = max(answer.passes for answer in answers)
    if case.params.decoding.early_stop or "rounds" in case.golden["params"]:
        # The reference goes on behind an EOS, and waits for the slowest request in every round.
        assert slowest <= case.passes
    else:
        assert slowest == case.passes


@pytest.mark.parametrize("group", [group for group in GROUPS if len(group) == 1], ids=lambda group: group[0].id)
def test_windows_and_commits_of_every_pass(group: list[Case], engines: dict[str, TorchEngine]) -> None:
    (case,) = group
    answer = decode(engines[case.model], [(case.prompt, case.params)])[0]
    if case.params.decoding.algorithm != "EntropyThreshold":
        forwards = case.golden["expected"]["forwards"][: answer.passes]
        assert answer.windows == [forward["input_len"] for forward in forwards]
        steps = answer.commit_steps[len(case.prompt) :]
        assert steps[: case.compared] == published_steps(case)[: case.compared]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [3, 64])
def test_packed_into_ragged_batches(model: str, size: int) -> None:
    cases = [case for case in CASES if case.model == model]
    engine = cpu_engine(GOLDEN / model, size)
    for first in range(0, len(cases), size):
        batch = cases[first : first + size]
        answers = decode(engine, [(case.prompt, case.params) for case in batch])
        for case, answer in zip(batch, answers, strict=True):
            assert_same(case, answer)


@pytest.mark.parametrize("model", MODELS)
def test_logits(model: str) -> None:
    expected = load_file(GOLDEN / "logits.safetensors")
    family = model.removesuffix("_tiny")
    ids = [expected[f"{family}.{number}.input_ids"].flatten().long() for number in range(4)]
    wanted = torch.cat([expected[f"{family}.{number}.logits_unshifted"].flatten(0, -2) for number in range(4)])
    packed = cpu_engine(GOLDEN / model, 4).forward(full_batch(ids, [0] * 4))
    alone = torch.cat([cpu_engine(GOLDEN / model, 1).forward(full_batch([one], [0])) for one in ids])
    assert (packed - wanted).abs().max() < TOLERANCE
    assert (alone - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("model", MODELS)
def test_cached_step(model: str) -> None:
    expected = load_file(GOLDEN / "logits.safetensors")
    prefix = f"{model.removesuffix('_tiny')}.cached"
    engine = cpu_engine(GOLDEN / model, 2)
    whole = expected[f"{prefix}.full_input_ids"].flatten().long()
    step = expected[f"{prefix}.step_input_ids"].flatten().long()
    start = len(whole) - len(step)
    other = torch.arange(7)
    engine.forward(full_batch([whole, other], [0, 0]))
    for layer in range(engine.spec.model_config.num_layers):
        for index, name in enumerate("kv"):
            cached = engine.kv_cache[layer, 0, index, :, :start]
            assert (cached - expected[f"{prefix}.{name}{layer}"].reshape(cached.shape)).abs().max() < TOLERANCE
    logits = engine.forward(full_batch([step, other], [start, 0]))[: len(step)]
    wanted = expected[f"{prefix}.logits_unshifted"].flatten(0, -2)
    assert (logits - wanted).abs().max() < TOLERANCE
