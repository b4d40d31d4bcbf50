"""TensorRTOps: the Ops protocol lowered into a strongly typed TensorRT network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from d3llm_trt.build.tensorrt.attention import NativeAttention, PluginAttention
from d3llm_trt.build.tensorrt.lowering import Lowering
from d3llm_trt.model.config import ModelConfig


class TensorRTOps:
    """Lowers one forward pass. Rows are ``[T, ...]``, or ``[B, S, ...]`` with padded attention.

    Args:
        lowering: the network under construction.
        config: the model.
        weights: packed weights by name, in the network's dtype or as :func:`packed_tensors` has them for fp8.
        dtype: the type of activations and logits.
        attention: how attention is lowered.
    """

    def __init__(
        self,
        lowering: Lowering,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        attention: NativeAttention | PluginAttention,
    ) -> None:
        self._low = lowering
        self._config = config
        self._weights = weights
        self._dtype = dtype
        self._attention = attention

    def embedding(self, name: str, ids: Any) -> Any:
        table = self._weight(f"{name}.weight")
        return self._low.output(name, self._low.network.add_gather(table, ids, 0))

    def linear(self, name: str, x: Any) -> Any:
        """Where there are scales, input and weight go through FP8, which TensorRT fuses with the product."""
        low, rank, scales = self._low, len(x.shape), (f"{name}.weight_scale", f"{name}.input_scale")
        weight = self._weight(f"{name}.weight", rank)
        if scales[0] in self._weights:
            weight_scale, scale = (self._weights[scale] for scale in scales)
            weight = self._dequantize(f"{name}.weight", weight, low.weight(f"{name}.weight.scale", weight_scale))
            factor = low.weight(f"{name}.input.scale", scale)
            quantized = low.output(f"{name}.input.quantize", low.network.add_quantize(x, factor, low.trt.fp8))
            x = self._dequantize(f"{name}.input", quantized, factor)
        product = low.matmul(name, x, weight)
        if f"{name}.bias" not in self._weights:
            return product
        return low.binary(f"{name}.add_bias", product, "SUM", self._weight(f"{name}.bias", rank))

    def _dequantize(self, name: str, x: Any, factor: Any) -> Any:
        layer = self._low.network.add_dequantize(x, factor, self._low.dtype(self._dtype))
        return self._low.output(f"{name}.dequantize", layer)

    def rms_norm(self, name: str, x: Any, feeds: str) -> Any:
        low, rank = self._low, len(x.shape)
        full = low.cast(f"{name}.to_float32", x, torch.float32)
        squares = low.binary(f"{name}.square", full, "PROD", full)
        average = low.trt.ReduceOperation.AVG
        mean = low.output(f"{name}.mean", low.network.add_reduce(squares, average, 1 << (rank - 1), True))
        eps = low.constant(f"{name}.eps", torch.full((1,) * rank, self._config.rms_norm_eps))
        root = low.unary(f"{name}.root", low.binary(f"{name}.add_eps", mean, "SUM", eps), "SQRT")
        scaled = low.binary(f"{name}.scaled", full, "PROD", low.unary(f"{name}.inverse", root, "RECIP"))
        normed = low.cast(f"{name}.cast_back", scaled, self._dtype)
        return low.binary(name, normed, "PROD", self._weight(f"{name}.weight", rank))

    def add_linear_norm(self, residual: Any, linear: str, x: Any, norm: str, feeds: str) -> tuple[Any, Any]:
        total = self._low.binary(f"{linear}.residual", residual, "SUM", self.linear(linear, x))
        return total, self.rms_norm(norm, total, feeds)

    def attention(self, name: str, layer: int, qkv: Any, feeds: str) -> Any:
        return self._attention.lower(name, layer, qkv)

    def gated_mlp(self, name: str, gate_up: Any, feeds: str) -> Any:
        low, size, rank = self._low, self._config.intermediate_size, len(gate_up.shape)
        rows = (0,) * (rank - 1)
        # Cut along an axis of its own: where rows are cut in half, TensorRT keeps a second copy of the weight, halved.
        halves = low.reshape(f"{name}.halves", gate_up, (*rows, 2, size))
        gate, up = (
            low.reshape(f"{name}.{part}.rows", low.slice(f"{name}.{part}", halves, rank - 1, index, 1), (*rows, size))
            for index, part in enumerate(("gate", "up"))
        )
        sigmoid = low.output(f"{name}.sigmoid", low.network.add_activation(gate, low.trt.ActivationType.SIGMOID))
        return low.binary(name, low.binary(f"{name}.silu", gate, "PROD", sigmoid), "PROD", up)

    def gather_rows(self, name: str, x: Any, rows: Any) -> Any:
        """Padded rows are numbered ``b * S + s``."""
        flat = x if len(x.shape) == 2 else self._low.reshape(f"{name}.flat", x, (-1, x.shape[-1]))
        return self._low.output(name, self._low.network.add_gather(flat, rows, 0))

    def _weight(self, name: str, rank: int | None = None) -> Any:
        """A weight, with leading ones so that it has as many dimensions as what it is combined with."""
        tensor = self._weights[name]
        shape = tuple(tensor.shape)
        return self._low.weight(name, tensor, shape if rank is None else (1,) * (rank - len(shape)) + shape)
