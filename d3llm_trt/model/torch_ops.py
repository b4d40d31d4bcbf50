"""Ops in torch: the CPU reference, and on a GPU our kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.plugins import ops, reference

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


def fp8_linear(
    x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``x @ weight.T`` of FP8 numbers in units of their scales, in ``dtype``: see ``reference.fp8_linear``.

    On a GPU of compute capability 8.9 or newer it is one kernel. That takes any number of rows; the sizes of the
    weight are multiples of 16.
    """
    if not x.is_cuda or len(x) == 0:
        return reference.fp8_linear(x, weight, x_scale, weight_scale, bias, dtype)
    return torch._scaled_mm(
        x, weight.t(), scale_a=x_scale, scale_b=weight_scale, bias=bias, out_dtype=dtype, use_fast_accum=True
    )


class TorchOps:
    """The Ops protocol over torch tensors, for one forward pass.

    Linear layers that have scales run in FP8; whatever comes before one then gives FP8 in units of its input scale.

    Args:
        config: the network.
        weights: packed weights by name (:func:`packed_tensors`), all on one device.
        kv_cache: ``[layers, slots, 2, kv_heads, max_seq, head_dim]`` on the same device, in the dtype of activations.
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

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._weights[f"{name}.weight"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        weight_scale = self._weights.get(f"{name}.weight_scale")
        if weight_scale is None:
            return F.linear(x, weight, bias)
        x_scale = self._weights[f"{name}.input_scale"]
        return fp8_linear(x, weight, x_scale, weight_scale, bias, self._kv_cache.dtype)

    def rms_norm(self, name: str, x: Tensor, feeds: str) -> Tensor:
        weight, scale = self._weights[f"{name}.weight"], self.input_scale(feeds)
        return ops.rms_norm(x, weight, self._config.rms_norm_eps, scale)

    def add_linear_norm(self, residual: Tensor, linear: str, x: Tensor, norm: str, feeds: str) -> tuple[Tensor, Tensor]:
        weight = self._weights[f"{linear}.weight"]
        if residual.is_cuda and weight.dtype == residual.dtype:
            total = residual.addmm_(x, weight.t())  # where the product ends anyway, rounded once
            return total, self.rms_norm(norm, total, feeds)
        # An FP8 product takes no residual, but the sum and its norm take one reading of the rows.
        y, weight, scale = self.linear(linear, x), self._weights[f"{norm}.weight"], self.input_scale(feeds)
        normed, total = ops.add_rms_norm(residual, y, weight, self._config.rms_norm_eps, scale)
        return total, normed

    def attention(self, name: str, layer: int, qkv: Tensor, feeds: str) -> Tensor:
        at = self._windows
        return ops.window_attention(
            qkv, self._kv_cache[layer], at.positions, at.cu_window, at.kv_lengths, at.slots, self._cos, self._sin,
            self.input_scale(feeds),
        )  # fmt: skip

    def gated_mlp(self, name: str, gate_up: Tensor, feeds: str) -> Tensor:
        return ops.silu_mul(gate_up, self.input_scale(feeds))

    def gather_rows(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        if x.dtype != torch.float8_e4m3fn:
            return x[rows]
        return x.view(torch.int64)[rows].view(x.dtype)  # in words, since not every torch can index FP8

    def input_scale(self, linear: str) -> Tensor | None:
        """The scale of the FP8 numbers that a linear layer takes; None where it does not run in FP8."""
        return self._weights.get(f"{linear}.input_scale")
