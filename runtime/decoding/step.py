"""What follows the forward pass of a step: commit what was selected, plan the next pass, and summarize both.

Everything is tensor code of fixed shapes: sizes come from the host, values stay on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.runtime.decoding.algorithm import Algorithm, Choice, Opening, Scores
from d3llm_trt.runtime.decoding.blocks import count_blocks, first_eos
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.decoding.entropy_threshold import EntropyThreshold
from d3llm_trt.runtime.decoding.full_attn_multi_block import FullAttnMultiBlock
from d3llm_trt.runtime.decoding.low_confidence import LowConfidence
from d3llm_trt.runtime.decoding.multi_block import MultiBlock
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.decoding.select import Selected
from d3llm_trt.runtime.decoding.state import MASKED, DecodingState, new_request
from d3llm_trt.runtime.decoding.windows import plan_window

IMPLEMENTATIONS: dict[str, Algorithm] = {
    "FullAttnMultiBlock": FullAttnMultiBlock(),
    "EntropyThreshold": EntropyThreshold(),
    "MultiBlock": MultiBlock(),
    "LowConfidence": LowConfidence(),
}

Part = TypeVar("Part", Opening, Choice)


@dataclass(frozen=True)
class SlotReport:
    """What the host needs to know of a slot between two passes: the last one, and the size of the next."""

    done: bool
    failed: bool
    passes: int
    window_tokens: int
    candidates: int


@dataclass(frozen=True, order=True)
class StepSizes:
    """How large a step is; what its requests do not fill is padding.

    Args:
        batch: entries, one for each request.
        tokens: rows of all windows together.
        rows: candidates of all requests together.
    """

    batch: int
    tokens: int
    rows: int


@dataclass(frozen=True)
class TensorSizes(StepSizes):
    """What the tensor code also needs to know of a step.

    Args:
        width: positions of the longest canvas.
        blocks: blocks of the request that has most of them, the prompt included.
        algorithms: the names of the requests' algorithms.
        sampling: whether any request has a temperature above 0.
        limited: whether any of these has top_k or top_p.
        barring: whether any request has min_tokens.
    """

    width: int
    blocks: int
    algorithms: tuple[str, ...]
    sampling: bool
    limited: bool = False
    barring: bool = False


def advance(
    config: ModelConfig, state: DecodingState, slots: Tensor, sizes: TensorSizes, chosen: Tensor, selected: Selected
) -> Tensor:
    """Do all that follows select in a step: commit, plan the next pass, and summarize it, ``[B, 5]``."""
    settings, progress = state.take(slots, sizes.width, sizes.blocks)
    progress = commit(config, sizes.algorithms, settings, progress, chosen, selected)
    progress = plan_pass(config, sizes.algorithms, settings, progress)
    state.put(slots, progress)
    return summarize(progress)


def first_pass(
    config: ModelConfig, prompt_token_ids: Sequence[int], params: SamplingParams
) -> tuple[RequestSettings, RequestProgress]:
    """A new request whose first pass is planned, one row on the CPU. Raises RequestError as :func:`new_request`."""
    settings, progress = new_request(config, prompt_token_ids, params)
    return settings, plan_pass(config, (params.decoding.algorithm,), settings, progress)


def plan_pass(
    config: ModelConfig, algorithms: Sequence[str], settings: RequestSettings, progress: RequestProgress
) -> RequestProgress:
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
        window_end=opening.live_length,
        done=progress.failed | ~blocks.masked.any(1),
    )
    if "MultiBlock" in algorithms:
        planned = plan_window(config.family, settings, progress, planned, blocks)
    at = blocks.positions
    reachable = (at < opening.limit[:, None]) & (at >= planned.window_start[:, None])
    return replace(planned, candidates=blocks.masked & reachable)


def _end_at_eos(settings: RequestSettings, progress: RequestProgress) -> RequestProgress:
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
    settings: RequestSettings,
    progress: RequestProgress,
    chosen: Tensor,
    selected: Selected,
) -> RequestProgress:
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

    def committed(sampled: Tensor, greedy: Tensor, before: Tensor) -> Tensor:
        after = torch.where(choice.sampled, _dense(chosen, sampled, shape, 0), before)
        return torch.where(choice.greedy & ~choice.sampled, _dense(chosen, greedy, shape, 0), after)

    return replace(
        progress,
        canvas=committed(selected.sampled, selected.greedy, progress.canvas),
        commit_steps=torch.where(choice.sampled | choice.greedy, number[:, None], progress.commit_steps),
        logprobs=committed(selected.logprob, selected.greedy_logprob, progress.logprobs),
        passes=number,
        failed=progress.failed | (progress.candidates & ~scores.entropy.isfinite()).any(1),
    )


def _by_algorithm(settings: RequestSettings, parts: dict[str, Part]) -> Part:
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


def _dense(chosen: Tensor, values: Tensor, shape: torch.Size, elsewhere: float) -> Tensor:
    """``values[R]`` at the flat positions ``chosen[R]`` of ``[B, W]``."""
    dense = torch.full((shape.numel() + 1,), elsewhere, dtype=values.dtype, device=values.device)
    return dense.scatter_(0, chosen, values)[:-1].view(shape)


def summarize(progress: RequestProgress) -> Tensor:
    """What the host needs to know, ``[B, 5]``, in one tensor so that it takes one copy."""
    window = progress.window_end - progress.window_start
    parts = (progress.done, progress.failed, progress.passes, window, progress.candidates.sum(1))
    return torch.stack([part.long() for part in parts], dim=1)


def read_summary(summary: Tensor) -> list[SlotReport]:
    """The summary ``[B, 5]`` of a step on the host; waits for the device."""
    return [SlotReport(bool(done), bool(failed), *rest) for done, failed, *rest in summary.tolist()]
