"""Ops in torch: the CPU reference, and on a GPU our kernels."""

from __future__ import annotations

import functools
import itertools
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
        self._norm_after = _norms_after_sums(config)
        self._linear_after = _linear_layers_after(config)
        self._ahead: tuple[str, Tensor, Tensor] | None = None  # a norm, its input, and its output

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._weights[f"{name}.weight"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        weight_scale = self._weights.get(f"{name}.weight_scale")
        if weight_scale is None:
            return F.linear(x, weight, bias)
        x_scale = self._weights[f"{name}.input_scale"]
        return fp8_linear(x, weight, x_scale, weight_scale, bias, self._kv_cache.dtype)

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        if self._ahead is not None and self._ahead[0] == name and self._ahead[1] is x:
            return self._ahead[2]
        weight, scale = self._weights[f"{name}.weight"], self._scale_after(name)
        normed: Tensor = ops.rms_norm(x, weight, self._config.rms_norm_eps, scale)
        return normed

    def add_linear(self, name: str, residual: Tensor, linear: str, x: Tensor) -> Tensor:
        weight = self._weights[f"{linear}.weight"]
        if residual.is_cuda and weight.dtype == residual.dtype:
            return residual.addmm_(x, weight.t())  # where the product ends anyway, rounded once
        return self._add(name, residual, self.linear(linear, x))

    def _add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Also computes the norm of the sum, where one follows: both take one reading of the rows."""
        norm = self._norm_after.get(name)
        if norm is None:
            return x + y
        normed: Tensor
        total: Tensor
        weight, scale = self._weights[f"{norm}.weight"], self._scale_after(norm)
        normed, total = ops.add_rms_norm(x, y, weight, self._config.rms_norm_eps, scale)
        self._ahead = (norm, total, normed)
        return total

    def attention(self, name: str, layer: int, qkv: Tensor) -> Tensor:
        at = self._windows
        attended: Tensor = ops.window_attention(
            qkv, self._kv_cache[layer], at.positions, at.cu_window, at.kv_lengths, at.slots, self._cos, self._sin,
            self._scale_after(name),
        )  # fmt: skip
        return attended

    def gated_mlp(self, name: str, gate_up: Tensor) -> Tensor:
        gated: Tensor = ops.silu_mul(gate_up, self._scale_after(name))
        return gated

    def gather_rows(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    def _scale_after(self, name: str) -> Tensor | None:
        """Input scale of the linear layer that takes the result of ``name``, if it runs in FP8."""
        following = self._linear_after.get(name)
        return None if following is None else self._weights.get(f"{following}.input_scale")


@functools.cache
def _norms_after_sums(config: ModelConfig) -> dict[str, str]:
    """Name of the norm that takes each residual sum; the last sum goes through the choice of rows first."""
    layers = [f"layers.{layer}" for layer in range(config.num_layers)]
    norms = {f"{name}.attention.residual": f"{name}.mlp_norm" for name in layers}
    following = itertools.pairwise(layers)
    return norms | {f"{name}.mlp.residual": f"{after}.attention_norm" for name, after in following}


@functools.cache
def _linear_layers_after(config: ModelConfig) -> dict[str, str]:
    """Name of the linear layer that alone takes the result of each norm, attention and gated MLP of the blocks."""
    pairs = (
        ("attention_norm", "attention.qkv"),
        ("attention", "attention.output"),
        ("mlp_norm", "mlp.gate_up"),
        ("mlp", "mlp.down"),
    )
    layers = [f"layers.{layer}" for layer in range(config.num_layers)]
    return {f"{layer}.{name}": f"{layer}.{linear}" for layer in layers for name, linear in pairs}
