"""One step on the device: gather the windows, run the network, select, commit, and plan the next pass.

Everything between two reports is tensor code of fixed shapes: sizes come from the host, values stay on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.runtime.decoding.algorithm import Algorithm, Choice, Opening, Scores
from d3llm_trt.runtime.decoding.blocks import count_blocks, first_eos
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.decoding.entropy_threshold import EntropyThreshold
from d3llm_trt.runtime.decoding.full_attn_multi_block import FullAttnMultiBlock
from d3llm_trt.runtime.decoding.low_confidence import LowConfidence
from d3llm_trt.runtime.decoding.multi_block import MultiBlock
from d3llm_trt.runtime.decoding.select import SampleKeys, Selected, select
from d3llm_trt.runtime.decoding.state import MASKED, DecodingState, Progress, Settings
from d3llm_trt.runtime.decoding.windows import plan_window
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch

IMPLEMENTATIONS: dict[str, Algorithm] = {
    "FullAttnMultiBlock": FullAttnMultiBlock(),
    "EntropyThreshold": EntropyThreshold(),
    "MultiBlock": MultiBlock(),
    "LowConfidence": LowConfidence(),
}

Part = TypeVar("Part", Opening, Choice)


@dataclass(frozen=True)
class SlotReport:
    """What the host needs to know of a slot between two passes."""

    done: bool
    failed: bool
    passes: int
    window_tokens: int
    candidates: int


@dataclass(frozen=True)
class StepShape:
    """Everything about a step that the host decides; a captured step is replayed for any state of the same shape.

    Args:
        width: positions of the longest canvas.
        blocks: of the longest list of blocks, the prompt included.
        tokens: rows of all windows together.
        rows: candidates of all requests together.
        algorithms: those of the requests.
        sampling: whether any request has a temperature above 0.
    """

    width: int
    blocks: int
    tokens: int
    rows: int
    algorithms: tuple[str, ...]
    sampling: bool


@torch.inference_mode()
def run_step(engine: Engine, state: DecodingState, slots: Tensor, shape: StepShape) -> Tensor:
    """One pass for the requests in ``slots[B]``; returns the report ``[B, 5]``, see :func:`read_report`."""
    config = engine.spec.model_config
    settings, progress = state.take(slots, shape.width, shape.blocks)
    chosen = _candidate_positions(progress.candidates, shape.rows)
    logits = engine.forward(_gather(config, settings, progress, slots, chosen, shape.tokens))
    selected = _select(config, settings, progress, chosen, logits, shape.sampling)
    return advance(config, state, slots, shape, chosen, selected)


def advance(
    config: ModelConfig, state: DecodingState, slots: Tensor, shape: StepShape, chosen: Tensor, selected: Selected
) -> Tensor:
    """All that follows select in a step: commit, plan the next pass, and report ``[B, 5]``."""
    settings, progress = state.take(slots, shape.width, shape.blocks)
    progress = commit(config, shape.algorithms, settings, progress, chosen, selected)
    progress = plan_pass(config, shape.algorithms, settings, progress)
    state.put(slots, progress)
    return report(progress)


def plan_pass(config: ModelConfig, algorithms: Sequence[str], settings: Settings, progress: Progress) -> Progress:
    """End answers at their EOS, open blocks, and choose window and candidates of the next pass."""
    progress = _end_at_eos(settings, progress)
    blocks = count_blocks(settings, progress.canvas, progress.active.shape[1], config.mask_token_id)
    opening = _by_algorithm(
        settings, {name: IMPLEMENTATIONS[name].open(settings, progress, blocks) for name in algorithms}
    )
    planned = replace(
        progress,
        opened=opening.opened,
        opened_pass=torch.where(opening.opened == progress.opened, progress.opened_pass, progress.passes),
        active=opening.active,
        live_length=opening.live_length,
        done=progress.failed | ~blocks.masked.any(1),
    )
    if "MultiBlock" in algorithms:
        planned = plan_window(config.family, settings, progress, planned, blocks)
    at = blocks.positions
    reachable = (at < opening.limit[:, None]) & (at >= planned.window_start[:, None])
    return replace(planned, candidates=blocks.masked & reachable)


def _end_at_eos(settings: Settings, progress: Progress) -> Progress:
    """Fill everything behind the first EOS with EOS, masks and tokens alike (spec T5, T6)."""
    end = first_eos(settings, progress.canvas)[:, None]
    at = torch.arange(progress.canvas.shape[1], device=end.device)
    behind = (at > end) & (at < settings.length[:, None])
    new = behind & (progress.commit_steps == MASKED)
    return replace(
        progress,
        canvas=torch.where(behind, settings.eos_id[:, None], progress.canvas),
        commit_steps=torch.where(new, progress.passes[:, None], progress.commit_steps),
    )


def commit(
    config: ModelConfig,
    algorithms: Sequence[str],
    settings: Settings,
    progress: Progress,
    chosen: Tensor,
    selected: Selected,
) -> Progress:
    """Write what each request's algorithm accepts of the candidates ``chosen[R]`` (flat positions)."""
    shape = progress.canvas.shape
    scores = Scores(
        entropy=_dense(chosen, selected.entropy, shape, torch.inf),
        confidence=_dense(chosen, selected.confidence, shape, -1.0),
    )
    blocks = count_blocks(settings, progress.canvas, progress.active.shape[1], config.mask_token_id)
    choice = _by_algorithm(
        settings,
        {name: IMPLEMENTATIONS[name].accept(config.family, settings, progress, blocks, scores) for name in algorithms},
    )
    number = progress.passes + 1
    canvas = torch.where(choice.sampled, _dense(chosen, selected.sampled, shape, 0), progress.canvas)
    canvas = torch.where(choice.greedy & ~choice.sampled, _dense(chosen, selected.greedy, shape, 0), canvas)
    return replace(
        progress,
        canvas=canvas,
        commit_steps=torch.where(choice.sampled | choice.greedy, number[:, None], progress.commit_steps),
        passes=number,
        failed=progress.failed | (progress.candidates & ~scores.entropy.isfinite()).any(1),
    )


def _by_algorithm(settings: Settings, parts: dict[str, Part]) -> Part:
    """Each request's row from the part of its own algorithm."""
    first, *others = parts
    return functools.reduce(
        lambda merged, name: _merged(settings.algorithm == ALGORITHMS.index(name), parts[name], merged),
        others,
        parts[first],
    )


def _merged(mine: Tensor, part: Part, other: Part) -> Part:
    """Rows of ``part`` where ``mine[B]``, of ``other`` elsewhere."""
    changes = {}
    for item in fields(part):
        values = getattr(part, item.name)
        rows = mine.view(-1, *[1] * (values.ndim - 1))
        changes[item.name] = torch.where(rows, values, getattr(other, item.name))
    return replace(part, **changes)


def _candidate_positions(candidates: Tensor, rows: int) -> Tensor:
    """Flat positions of the candidates ``[B, W]`` in order, ``[rows]``; B * W where there are fewer."""
    flat = candidates.flatten()
    target = torch.where(flat, flat.cumsum(0) - 1, rows)
    positions = torch.full((rows + 1,), len(flat), dtype=torch.int64, device=flat.device)
    return positions.scatter_(0, target, torch.arange(len(flat), device=flat.device))[:rows]


def _owner(progress: Progress, chosen: Tensor) -> Tensor:
    """The request of every flat position ``chosen[R]``; the last one for positions that stand for none."""
    batch, width = progress.canvas.shape
    return torch.div(chosen, width, rounding_mode="floor").clamp(max=batch - 1)


def _gather(
    config: ModelConfig, settings: Settings, progress: Progress, slots: Tensor, chosen: Tensor, tokens: int
) -> ForwardBatch:
    """The packed windows of all requests, and the rows that score the ``chosen`` positions."""
    start, (batch, width) = progress.window_start, progress.canvas.shape
    edges = torch.nn.functional.pad((progress.live_length - start).cumsum(0), (1, 0))
    row = torch.arange(tokens, device=slots.device)
    owner = torch.searchsorted(edges[1:], row, right=True).clamp(max=batch - 1)
    positions = (row - edges[owner] + start[owner]).clamp(max=width - 1)
    asker = _owner(progress, chosen)
    # Dream's row i scores position i + 1; the first position of a window takes its own row (spec A.4).
    scoring = torch.maximum(chosen % width - int(config.shifted_logits), start[asker])
    return ForwardBatch(
        token_ids=progress.canvas[owner, positions],
        positions=positions,
        cu_window=edges,
        kv_lengths=progress.live_length,
        slots=slots,
        logit_rows=(edges[asker] + scoring - start[asker]).clamp(max=tokens - 1),
    )


def _select(
    config: ModelConfig, settings: Settings, progress: Progress, chosen: Tensor, logits: Tensor, sampling: bool
) -> Selected:
    owner = _owner(progress, chosen)
    keys = None
    if sampling:
        number = progress.passes[owner] + 1
        keys = SampleKeys(settings.temperature[owner], settings.seed[owner], chosen % progress.canvas.shape[1], number)
    return select(logits, config.mask_token_id, settings.entropy_eps[owner], keys)


def _dense(chosen: Tensor, values: Tensor, shape: torch.Size, elsewhere: float) -> Tensor:
    """``values[R]`` at the flat positions ``chosen[R]`` of ``[B, W]``."""
    dense = torch.full((shape.numel() + 1,), elsewhere, dtype=values.dtype, device=values.device)
    return dense.scatter_(0, chosen, values)[:-1].view(shape)


def report(progress: Progress) -> Tensor:
    """What the host needs to know, ``[B, 5]``, in one tensor so that it takes one copy."""
    window = progress.live_length - progress.window_start
    parts = (progress.done, progress.failed, progress.passes, window, progress.candidates.sum(1))
    return torch.stack([part.long() for part in parts], dim=1)


def read_report(values: Tensor) -> list[SlotReport]:
    """Copy a report to the host; waits for the device."""
    return [SlotReport(bool(done), bool(failed), *rest) for done, failed, *rest in values.tolist()]
