"""Packed windows on a network that takes padded ones: the engine behind TensorRT's native attention."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from d3llm_trt.runtime.engines.base import EngineSpec, ForwardBatch
from d3llm_trt.runtime.engines.kv_cache import allocate_kv_cache


class Session(Protocol):
    """Runs the network once on the current stream. Inputs and outputs are bound by name to memory that is there."""

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Compute the outputs among ``tensors``."""

    def close(self) -> None:
        """Keep what is worth keeping for the next start."""


@dataclass(frozen=True)
class Window:
    """Window number ``index`` of a batch: packed rows from ``row`` on, positions ``[start, start + length)``.

    It attends to ``[0, kv_length)``.
    """

    index: int
    slot: int
    row: int
    start: int
    length: int
    kv_length: int

    def has_room(self, width: int, capacity: int) -> bool:
        """Whether it can be padded to ``width`` rows, whose K/V would be written behind it."""
        return self.start + width <= capacity and (width == self.length or self.start + self.length == self.kv_length)


class PaddedEngine:
    """The Engine protocol over a :class:`Session` whose inputs are ``[B, S]`` windows of neighbouring slots.

    Slots that lie between the first and the last window of a run, but are not in the batch, are free: what is
    computed for them is never read. A run's windows are padded to its longest one, which must not write behind a
    slot's cache; where it would, the batch is run in parts. The layout is read on the host.
    """

    def __init__(self, spec: EngineSpec, session: Session) -> None:
        self.spec = replace(spec, layout="padded", graph_capturable=False)
        self._session = session
        config = spec.model_config
        cache = allocate_kv_cache(config, spec.max_batch_size, spec.max_seq_len, spec.dtype, spec.device)
        # TensorRT wants K and V apart: per layer all slots' K, then all slots' V, in the same memory.
        shape = (config.num_layers, 2, spec.max_batch_size, config.num_kv_heads, spec.max_seq_len, config.head_dim)
        self.kv_cache = cache.view(shape)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        vocab, rows = self.spec.model_config.vocab_size, batch.logit_rows
        owner = torch.searchsorted(batch.cu_window[1:], rows, right=True)
        runs = plan_runs(_windows(batch), self.spec.max_seq_len)
        if len(runs) == 1:
            return self._run(batch, runs[0], rows, owner)
        logits = torch.empty(len(rows), vocab, dtype=self.spec.dtype, device=rows.device)
        for run in runs:
            places = ((owner >= run[0].index) & (owner <= run[-1].index)).nonzero()[:, 0]
            logits[places] = self._run(batch, run, rows[places], owner[places])
        return logits

    def close(self) -> None:
        self._session.close()

    def _run(self, batch: ForwardBatch, run: Sequence[Window], rows: Tensor, owner: Tensor) -> Tensor:
        first, device = run[0].slot, rows.device
        slots, width = run[-1].slot - first + 1, max(window.length for window in run)
        scored = (batch.slots - first)[owner] * width + rows - batch.cu_window[owner]
        if not len(rows):
            scored = torch.zeros(1, dtype=torch.int64, device=device)  # no profile takes none; K/V are written anyway
        vocab = self.spec.model_config.vocab_size
        tensors = {
            "token_ids": torch.zeros(slots, width, dtype=torch.int64, device=device),
            "positions": torch.zeros(slots, width, dtype=torch.int64, device=device),
            "window_starts": torch.zeros(slots, dtype=torch.int32, device=device),
            "kv_lengths": torch.ones(slots, dtype=torch.int32, device=device),
            "logit_rows": scored,
            "logits": torch.empty(len(scored), vocab, dtype=self.spec.dtype, device=device),
        }
        for window in run:
            line, packed = window.slot - first, slice(window.row, window.row + window.length)
            tensors["token_ids"][line, : window.length] = batch.token_ids[packed]
            tensors["positions"][line] = torch.arange(window.start, window.start + width, device=device)
            tensors["window_starts"][line] = window.start
            tensors["kv_lengths"][line] = window.kv_length
        self._session.run({**tensors, **self._caches(first, slots)})
        return tensors["logits"][: len(rows)]

    def _caches(self, first: int, slots: int) -> dict[str, Tensor]:
        """Cache inputs, and their updated outputs in the same memory."""
        bound = {}
        for layer, both in enumerate(self.kv_cache[:, :, first : first + slots]):
            for name, cache in zip(("k_cache", "v_cache"), both, strict=True):
                bound[f"{name}.{layer}"] = bound[f"{name}.{layer}.updated"] = cache
        return bound


def plan_runs(windows: Sequence[Window], capacity: int) -> list[list[Window]]:
    """Neighbouring windows together, in slot order, as long as the longest of a run fits behind the start of each.

    Padding writes K/V behind a window, so one with live positions there must be as long as the longest.
    """
    runs: list[list[Window]] = []
    for window in windows:
        together = [*runs[-1], window] if runs else []
        width = max((other.length for other in together), default=0)
        if together and all(other.has_room(width, capacity) for other in together):
            runs[-1].append(window)
        else:
            runs.append([window])
    return runs


def _windows(batch: ForwardBatch) -> list[Window]:
    edges, slots, kv_lengths = batch.cu_window.tolist(), batch.slots.tolist(), batch.kv_lengths.tolist()
    starts = batch.positions[batch.cu_window[:-1].clamp(max=len(batch.positions) - 1)].tolist()
    return [
        Window(index, slots[index], low, starts[index], high - low, kv_lengths[index])
        for index, (low, high) in enumerate(itertools.pairwise(edges))
    ]
