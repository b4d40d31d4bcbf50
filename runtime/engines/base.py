"""The Engine protocol: a batch of windows in, logits of the requested rows out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from d3llm_trt.model.config import ModelConfig


@dataclass(frozen=True)
class EngineSpec:
    """What an engine is and can take.

    Args:
        model_config: hyper-parameters of the network.
        backend: how it was compiled.
        dtype: the type of weights, activations, KV cache and logits.
        quantization: None, or the name of the weights' reduced precision.
        device: where batches must be.
        max_batch_size: slots, so windows in one batch.
        max_seq_len: positions of one slot.
        max_num_tokens: rows of one batch.
        layout: what the network computes on; a padded engine converts by itself.
        graph_capturable: whether ``forward`` may run inside a captured CUDA graph.
    """

    model_config: ModelConfig
    backend: str
    dtype: torch.dtype
    device: torch.device
    max_batch_size: int
    max_seq_len: int
    max_num_tokens: int
    quantization: str | None = None
    layout: Literal["packed", "padded"] = "packed"
    graph_capturable: bool = False


@dataclass(frozen=True)
class ForwardBatch:
    """Windows of B slots, packed one after the other; int64 tensors on the engine's device.

    ``token_ids[T]`` and absolute ``positions[T]``; window b is rows ``[cu_window[b], cu_window[b + 1])``; it attends
    to cache rows ``[0, kv_lengths[b])`` of ``slots[b]`` after its own K/V were written there. ``logit_rows[R]`` are
    the rows that go on after the last layer's attention, to the LM head.
    """

    token_ids: Tensor
    positions: Tensor
    cu_window: Tensor
    kv_lengths: Tensor
    slots: Tensor
    logit_rows: Tensor


class Engine(Protocol):
    """Runs the network; owns its weights and KV cache."""

    @property
    def spec(self) -> EngineSpec:
        """What it is and can take."""

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Raw logits ``[R, vocab]``; Dream's shift is in the choice of rows."""

    def close(self) -> None:
        """Keep what is worth keeping for the next start; ``forward`` is not called any more."""
