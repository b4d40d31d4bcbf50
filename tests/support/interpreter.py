"""Runs a TensorRT network object layer by layer in torch: what was really built, not what was meant.

It knows the layers that the lowering uses and refuses any other. Constants are read back from the network; FP8 and
BF16 ones, which TensorRT's Python cannot read back, are taken from the memory that was given for them, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Binary = Callable[[Tensor, Tensor], Tensor]
ELEMENTWISE: dict[str, Binary] = {"SUM": torch.add, "PROD": torch.mul, "DIV": torch.div, "LESS": torch.lt}
UNARY: dict[str, Callable[[Tensor], Tensor]] = {"SQRT": torch.sqrt, "RECIP": torch.reciprocal}


class Interpreter:
    """Walks one network. ``given`` is the memory of its constants by layer name.

    With ``exact`` what the network calls float32 is computed in float64, so that rounding hides nothing.
    """

    elementwise = ELEMENTWISE

    def __init__(self, trt: Any, network: Any, given: Mapping[str, Tensor], *, exact: bool = False) -> None:
        self._trt = trt
        self._network = network
        self._given = given
        self._dtypes = {
            trt.float32: torch.float64 if exact else torch.float32,
            trt.float16: torch.float16,
            trt.bfloat16: torch.bfloat16,
            trt.fp8: torch.float8_e4m3fn,
            trt.int32: torch.int32,
            trt.int64: torch.int64,
            trt.bool: torch.bool,
        }

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All outputs by name. Cache inputs are updated in place, as on a GPU."""
        values = dict(inputs)
        for number in range(self._network.num_inputs):
            tensor = self._network.get_input(number)
            assert values[tensor.name].dtype == self._dtypes[tensor.dtype], f"{tensor.name} has the wrong dtype"
        for number in range(self._network.num_layers):
            layer = self._network.get_layer(number)
            results = self._layer(layer, values)
            for index, result in enumerate(results):
                output = layer.get_output(index)
                assert result.dtype == self._dtypes[output.dtype], f"{layer.name} gives {result.dtype}"
                self._check_shape(layer.name, result, tuple(output.shape))
                values[output.name] = result
        outputs = [self._network.get_output(number).name for number in range(self._network.num_outputs)]
        return {name: values[name] for name in outputs}

    @staticmethod
    def _check_shape(name: str, result: Tensor, shape: tuple[int, ...]) -> None:
        same = len(shape) == result.ndim and all(a in (-1, b) for a, b in zip(shape, result.shape, strict=True))
        assert same, f"{name} gives {tuple(result.shape)}, announced {shape}"

    def _layer(self, layer: Any, values: dict[str, Tensor]) -> list[Tensor]:
        kind = layer.type.name
        run = getattr(self, "_" + kind.lower(), None)
        assert run is not None, f"{layer.name}: the interpreter does not know {kind}"
        words = kind.title().replace("_", "").replace("KvCache", "KVCache").replace("Elementwise", "ElementWise")
        words = words.replace("Softmax", "SoftMax")
        layer.__class__ = getattr(self._trt, f"I{words}Layer")
        inputs = [
            None if (tensor := layer.get_input(index)) is None else values[tensor.name]
            for index in range(layer.num_inputs)
        ]
        result = run(layer, inputs)
        return result if isinstance(result, list) else [result]

    def _constant(self, layer: Any, _: list[Tensor]) -> Tensor:
        dims, dtype = tuple(layer.shape), self._dtypes[layer.get_output(0).dtype]
        data = layer.weights
        if hasattr(data, "shape"):
            return torch.from_numpy(data.copy()).reshape(dims).to(dtype)
        memory = self._given[layer.name]
        assert memory.dtype == dtype and memory.numel() == data.size
        return memory.reshape(dims)

    def _gather(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        table, indices = inputs
        assert layer.axis == 0 and layer.num_elementwise_dims == 0
        assert int(indices.min()) >= 0 and int(indices.max()) < len(table)
        return table[indices]

    def _cast(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        return inputs[0].to(self._dtypes[layer.get_output(0).dtype])

    def _elementwise(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        x, y = inputs
        assert x.dtype == y.dtype and x.ndim == y.ndim, f"{layer.name} mixes {x.dtype} {x.ndim} and {y.dtype} {y.ndim}"
        return self.elementwise[layer.op.name](x, y)

    def _unary(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        return UNARY[layer.op.name](inputs[0])

    def _activation(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        assert layer.type == self._trt.ActivationType.SIGMOID
        return torch.sigmoid(inputs[0])

    def _reduce(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        assert layer.op == self._trt.ReduceOperation.AVG and layer.keep_dims
        axes = [axis for axis in range(inputs[0].ndim) if layer.axes >> axis & 1]
        return inputs[0].mean(axes, keepdim=True)

    def _shape(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        return torch.tensor(inputs[0].shape)

    def _slice(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        x, start, size = inputs[:3]
        assert tuple(layer.stride) == (1,) * x.ndim
        spans = zip(start.tolist(), size.tolist(), strict=True)
        return x[tuple(slice(begin, begin + count) for begin, count in spans)]

    def _shuffle(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        x = inputs[0].permute(*list(layer.first_transpose)[: inputs[0].ndim])
        dims = [x.shape[axis] if size == 0 else size for axis, size in enumerate(layer.reshape_dims)]
        x = x.reshape(dims)
        return x.permute(*list(layer.second_transpose)[: x.ndim])

    def _matrix_multiply(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        operation = self._trt.MatrixOperation
        assert (layer.op0, layer.op1) == (operation.NONE, operation.TRANSPOSE)
        assert inputs[0].dtype == inputs[1].dtype and inputs[0].ndim == inputs[1].ndim
        return inputs[0] @ inputs[1].transpose(-1, -2)

    def _rotary_embedding(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        x, cos, sin, positions = inputs
        assert not layer.interleaved and layer.rotary_embedding_dim == x.shape[-1]
        c, s = cos[positions][:, None], sin[positions][:, None]
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * c - second * s, second * c + first * s), dim=-1)

    def _kv_cache_update(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        cache, update, starts = inputs
        assert layer.cache_mode == self._trt.KVCacheMode.LINEAR
        for row, start in enumerate(starts.tolist()):
            end = start + update.shape[2]
            assert start >= 0 and end <= cache.shape[2], f"{layer.name} writes [{start}, {end}) of {cache.shape[2]}"
            cache[row, :, start:end] = update[row]
        return cache

    def _attention_input(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        """The boundary layers share one IAttention; the work is done here."""
        q, k, v, mask, *_, lengths = [*inputs, *[None] * (7 - len(inputs))]
        attention = layer.attention
        assert attention.causal_kind == self._trt.CausalMaskKind.NONE
        assert attention.norm_op == self._trt.AttentionNormalizationOp.SOFTMAX
        if mask is None:
            assert lengths is not None and attention.key_value_lengths is not None
            mask = torch.arange(k.shape[2])[None, None, None] < lengths[:, None, None, None]
        # Whatever lies behind a slot's length must not matter, not even as 0 * NaN.
        seen = mask[:, 0, 0, :, None][:, None]
        k, v = torch.where(seen, k, 0), torch.where(seen, v, 0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0, enable_gqa=q.shape[1] != k.shape[1])

    def _attention_output(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        return inputs[0]

    def _quantize(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        return (inputs[0] / inputs[1]).clamp(-448, 448).to(torch.float8_e4m3fn)

    def _dequantize(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        dtype = self._dtypes[layer.get_output(0).dtype]
        return inputs[0].to(dtype) * inputs[1].to(dtype)
