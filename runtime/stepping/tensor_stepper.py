"""Steps by tensor code: the reference, on the CPU and on a GPU without compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.progress import OnProgress
from d3llm_trt.runtime.decoding.select import Limits, SampleKeys, Selected, select
from d3llm_trt.runtime.decoding.state import NO_TOKEN, DecodingState
from d3llm_trt.runtime.decoding.step import SlotReport, TensorSizes, advance, read_summary
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch
from d3llm_trt.runtime.stepping.stepper import Occupant


class TensorStepper:
    """A Stepper whose steps are of exactly the size that their requests need."""

    def __init__(self, engine: Engine) -> None:
        self.spec = engine.spec
        self.state = DecodingState.empty(self.spec.max_batch_size, self.spec.max_seq_len, self.spec.device)
        self.engine = engine

    def warm_up(self, progress: OnProgress | None = None) -> None:
        """Nothing needs to be prepared."""

    def step(self, occupants: Sequence[Occupant]) -> list[SlotReport]:
        """One pass for these requests; waits for it."""
        slots = torch.tensor([occupant.slot for occupant in occupants], device=self.spec.device)
        return read_summary(run_step(self.engine, self.state, slots, sizes_of(occupants)))

    def on_stream(self) -> AbstractContextManager[object]:
        """Steps run on whatever stream is the current one."""
        return nullcontext()


def sizes_of(occupants: Sequence[Occupant]) -> TensorSizes:
    """The sizes of the next step for these requests."""
    params, reports = [occupant.params for occupant in occupants], [occupant.report for occupant in occupants]
    return TensorSizes(
        batch=len(occupants),
        tokens=sum(report.window_tokens for report in reports),
        rows=sum(report.candidates for report in reports),
        width=max(occupant.length for occupant in occupants),
        blocks=max(occupant.blocks for occupant in occupants),
        algorithms=tuple(sorted({each.decoding.algorithm for each in params})),
        sampling=any(each.temperature > 0 for each in params),
        limited=any(each.temperature > 0 and (each.top_k > 0 or each.top_p < 1) for each in params),
        barring=any(each.min_tokens > 0 for each in params),
    )


@torch.inference_mode()
def run_step(engine: Engine, state: DecodingState, slots: Tensor, sizes: TensorSizes) -> Tensor:
    """One pass for the requests in ``slots[B]``; returns its summary ``[B, 5]``."""
    config = engine.spec.model_config
    settings, progress = state.take(slots, sizes.width, sizes.blocks)
    chosen = _candidate_positions(progress.candidates, sizes.rows)
    logits = engine.forward(_gather(config, settings, progress, slots, chosen, sizes.tokens))
    selected = _select(config, settings, progress, chosen, logits, sizes)
    return advance(config, state, slots, sizes, chosen, selected)


def _candidate_positions(candidates: Tensor, rows: int) -> Tensor:
    """Flat positions of the candidates ``[B, W]`` in order, ``[rows]``; B * W where there are fewer."""
    flat = candidates.flatten()
    target = torch.where(flat, flat.cumsum(0) - 1, rows)
    positions = torch.full((rows + 1,), len(flat), dtype=torch.int64, device=flat.device)
    return positions.scatter_(0, target, torch.arange(len(flat), device=flat.device))[:rows]


def _owner(progress: RequestProgress, chosen: Tensor) -> Tensor:
    """The request of every flat position ``chosen[R]``; the last one for positions that stand for none."""
    batch, width = progress.canvas.shape
    return torch.div(chosen, width, rounding_mode="floor").clamp(max=batch - 1)


def _gather(
    config: ModelConfig,
    settings: RequestSettings,
    progress: RequestProgress,
    slots: Tensor,
    chosen: Tensor,
    tokens: int,
) -> ForwardBatch:
    """The packed windows of all requests, and the rows that score the ``chosen`` positions."""
    start, (batch, width) = progress.window_start, progress.canvas.shape
    edges = torch.nn.functional.pad((progress.window_end - start).cumsum(0), (1, 0))
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
    config: ModelConfig,
    settings: RequestSettings,
    progress: RequestProgress,
    chosen: Tensor,
    logits: Tensor,
    sizes: TensorSizes,
) -> Selected:
    owner, position = _owner(progress, chosen), chosen % progress.canvas.shape[1]
    keys = limits = barred = None
    if sizes.sampling:
        number = progress.passes[owner] + 1
        keys = SampleKeys(settings.temperature[owner], settings.seed[owner], position, number)
    if sizes.limited:
        limits = Limits(settings.top_k[owner], settings.top_p[owner])
    if sizes.barring:
        barred = _barred(settings, owner, position)
    return select(logits, config.mask_token_id, settings.entropy_eps[owner], keys, limits, barred)


def _barred(settings: RequestSettings, owner: Tensor, position: Tensor) -> Tensor:
    """The ids that may not come yet at each ``position[R]``, ``[R, 8]``: end ids before ``min_tokens``."""
    answered = position - settings.prompt_length[owner]
    early = (answered >= 0) & (answered < settings.min_tokens[owner])
    return torch.where(early[:, None], settings.end_ids[owner], NO_TOKEN)
