"""Ops in torch: the CPU reference, and on a GPU our kernels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.plugins import ops

RotaryTables = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Windows:
    """The layout of a packed batch, int64: rows ``[cu_window[b], cu_window[b + 1])`` belong to the request in
    ``slots[b]`` and attend to its cache rows ``[0, kv_lengths[b])``; ``positions[T]`` are absolute.
    """

    positions: Tensor
    cu_window: Tensor
    kv_lengths: Tensor
    slots: Tensor

    @classmethod
    def whole(cls, length: int) -> Windows:
        """One canvas from its first to its last position, in slot 0."""
        ends = torch.tensor([0, length])
        return cls(torch.arange(length), ends, ends[1:], ends[:1])


def rotary_tables(config: ModelConfig, positions: int, device: torch.device | None = None) -> RotaryTables:
    """Cosine and sine ``[positions, head_dim / 2]`` in float32 (spec A.3)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / (config.rope_theta ** (half / config.head_dim))
    angles = torch.arange(positions, dtype=torch.float32, device=device)[:, None] * frequencies
    return angles.cos(), angles.sin()


class TorchOps:
    """The Ops protocol over torch tensors, for one forward pass.

    Args:
        config: the network.
        weights: packed weights by name (:meth:`ModelConfig.tensor_shapes`), all of one dtype and device.
        kv_cache: ``[layers, slots, 2, kv_heads, max_seq, head_dim]``, same dtype and device.
        windows: the windows of the batch.
        tables: :func:`rotary_tables` for all positions of a slot.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        kv_cache: Tensor,
        windows: Windows,
        tables: RotaryTables,
    ) -> None:
        self._config = config
        self._weights = weights
        self._kv_cache = kv_cache
        self._windows = windows
        self._cos, self._sin = tables
        self._norm_after = _norms_after_sums(config)
        self._ahead: tuple[str, Tensor, Tensor] | None = None  # a norm, its input, and its output

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._weights[f"{name}.weight"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        if self._ahead is not None and self._ahead[0] == name and self._ahead[1] is x:
            return self._ahead[2]
        normed: Tensor = ops.rms_norm(x, self._weights[f"{name}.weight"], self._config.rms_norm_eps)
        return normed

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Also computes the norm of the sum, where one follows: both take one reading of the rows."""
        norm = self._norm_after.get(name)
        if norm is None:
            return x + y
        normed: Tensor
        total: Tensor
        normed, total = ops.add_rms_norm(x, y, self._weights[f"{norm}.weight"], self._config.rms_norm_eps)
        self._ahead = (norm, total, normed)
        return total

    def attention(self, name: str, layer: int, qkv: Tensor) -> Tensor:
        at = self._windows
        attended: Tensor = ops.window_attention(
            qkv, self._kv_cache[layer], at.positions, at.cu_window, at.kv_lengths, at.slots, self._cos, self._sin
        )
        return attended

    def gated_mlp(self, name: str, gate_up: Tensor) -> Tensor:
        gated: Tensor = ops.silu_mul(gate_up)
        return gated

    def gather_rows(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]


def _norms_after_sums(config: ModelConfig) -> dict[str, str]:
    """Name of the norm that takes each residual sum; the last sum goes through the choice of rows first."""
    layers = [f"layers.{layer}" for layer in range(config.num_layers)]
    norms = {f"{name}.attention.residual": f"{name}.mlp_norm" for name in layers}
    following = itertools.pairwise(layers)
    return norms | {f"{name}.mlp.residual": f"{after}.attention_norm" for name, after in following}
