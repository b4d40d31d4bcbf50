"""Logits and tokens of the golden checkpoints by a plan, and mutations that must show in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tensorrt85.plans import DAMAGED_WEIGHT, Plan, damaged_copy, open_engine, twin
from d3llm_trt.manifest import WEIGHTS_FILE, load_manifest
from d3llm_trt.runtime.engines.padded import PaddedEngine
from d3llm_trt.runtime.engines.tensorrt_engine import engine_over
from d3llm_trt.runtime.engines.tensorrt_session import TensorRTSession, open_plan
from d3llm_trt.tensorrt_module import load_tensorrt
from tests.support.engines import decode
from tests.support.golden_batches import golden_batches, on_device, worst_error
from tests.support.golden_cases import Case, read_cases

Change = Callable[[dict[str, Tensor]], None]
Note = Callable[[dict[str, Any]], None]


def compare_logits(plan: Plan, work: Path, device: str, note: Note) -> None:
    """Largest difference of the logits from the torch engine's, golden tokens, and what mutations do to them.

    ``note`` is called with what is found, as soon as it is.
    """
    engine, model = open_engine(work / plan.name, device), open_engine(twin(plan, work), device)
    batches = (on_device(batch, device) for batch in golden_batches(plan.family))
    note({"largest_logit": max(float(model.forward(batch).abs().max()) for batch in batches)})
    note({"error": worst_error(engine, model, plan.family, device)})
    if plan.strip_weights:
        other = damaged_copy(work / plan.name, work / f"{plan.name}.other", WEIGHTS_FILE, DAMAGED_WEIGHT)
        damaged = worst_error(open_engine(other, device), model, plan.family, device)
        note({"refitted with a wrong weight, error": damaged})
    elif plan.source == "golden":
        note({"golden_tokens": golden_tokens(engine, plan)})
        note({"mutations": mutations(plan, work, device, model)})


def golden_tokens(engine: Any, plan: Plan, most: int | None = None) -> dict[str, int]:
    """How many of the golden decoding cases (of the first ``most``) come out as published, in batches of all slots."""
    cases = [
        case
        for case in read_cases()
        if case.model == f"{plan.family}_tiny" and case.golden["stable_to_logit_noise"] >= 1e-3
    ][:most]
    answered = [tokens for batch in _batches(cases, plan.slots) for tokens in _decoded(engine, batch)]
    equal = sum(
        tokens[: case.compared] == case.generated[: case.compared] for case, tokens in zip(cases, answered, strict=True)
    )
    return {"cases": len(cases), "equal": equal}


def _batches(cases: list[Case], size: int) -> list[list[Case]]:
    return [cases[first : first + size] for first in range(0, len(cases), size)]


def _decoded(engine: Any, cases: list[Case]) -> list[list[int]]:
    answers = decode(engine, [(case.prompt, case.params) for case in cases])
    return [answer.canvas[len(case.prompt) :] for case, answer in zip(cases, answers, strict=True)]


def mutations(plan: Plan, work: Path, device: str, model: Any) -> dict[str, Any]:
    """What each mutation of the engine over the sound plan does: to the logits, or to golden tokens."""
    engine = open_engine(work / plan.name, device)
    found: dict[str, Any] = {"cache rows moved by one, error": _moved_rows(engine, model, plan, device)}
    if isinstance(engine, PaddedEngine) and device != "cpu":
        changed = changed_engine(plan, work, _late_window)
        found["window written one row late, error"] = worst_error(changed, model, plan.family, device)
    if plan.family == "dream":
        unshifted = replace(engine.spec.model_config, family="llada")
        object.__setattr__(engine.spec, "model_config", unshifted)
        found["no shift, golden tokens"] = golden_tokens(engine, plan, 8)
    return found


def _moved_rows(engine: Any, model: Any, plan: Plan, device: str) -> float:
    """Error of the cached step where the rows before it lie one position further than they should."""
    _, whole, step = (on_device(batch, device) for batch in golden_batches(plan.family))
    for one in (engine, model):
        one.forward(whole)
    engine.kv_cache.copy_(engine.kv_cache.roll(1, dims=-2))
    return float((engine.forward(step) - model.forward(step)).abs().max())


def _late_window(tensors: dict[str, Tensor]) -> None:
    tensors["window_starts"] += 1


class ChangedSession:
    """A session whose tensors are changed before each run."""

    def __init__(self, session: TensorRTSession, change: Change) -> None:
        self._session, self._change = session, change

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Change, then run."""
        changed = dict(tensors)
        self._change(changed)
        self._session.run(changed)

    def close(self) -> None:
        """See :class:`Session`."""
        self._session.close()


def changed_engine(plan: Plan, work: Path, change: Change) -> Any:
    """The engine of a plan with a session that changes what it is given."""
    directory, device = work / plan.name, torch.device("cuda")
    manifest, spec = load_manifest(directory), open_engine(directory, "cuda").spec
    trt = load_tensorrt("tensorrt")
    session = TensorRTSession(trt, open_plan(trt, directory, manifest, device), device)
    return engine_over(spec, manifest, ChangedSession(session, change))
