"""A strongly typed network of the new API over a weakly typed one: every layer is told its precision and its type."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.support.tensorrt85 import compositions
from tests.support.tensorrt85.types import DataType, Weights

PAIR = 2  # int32 numbers of an int64
COMPOSED_CACHES = "caches that are not updated in place"  # the name of such a network, which its plan has too


class Tensor:
    """An ITensor and its type in the new API."""

    def __init__(self, real: Any, dtype: DataType) -> None:
        self.real = real
        self.dtype = dtype

    @property
    def memory(self) -> Any:
        """The tensor as it lies in the memory of the caller."""
        return self.real

    @property
    def shape(self) -> tuple[int, ...]:
        """-1 where an extent is not known."""
        return tuple(self.real.shape)

    @property
    def name(self) -> str:
        """Of the ITensor."""
        return str(self.real.name)

    @name.setter
    def name(self, name: str) -> None:
        self.real.name = name


class Int64Input:
    """An int64 input: int32 pairs in the same memory, of which the network takes the lower halves where it reads it."""

    dtype = DataType.INT64

    def __init__(self, network: Network, pairs: Any) -> None:
        self._network = network
        self._low: Any = None
        self.memory = pairs

    @property
    def real(self) -> Any:
        """The lower halves as int32."""
        if self._low is None:
            first = self._network.constant(f"{self.name}.first", np.zeros((), np.int32))
            pairs = Tensor(self.memory, DataType.INT32)
            layer = self._network.add_gather(pairs, first, len(self.shape))
            layer.name = f"{self.name}.low"
            self._low = layer.get_output(0).real
        return self._low

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the pairs."""
        return tuple(self.memory.shape)[:-1]

    @property
    def name(self) -> str:
        """Of the input."""
        return str(self.memory.name)


class Layer:
    """A layer whose outputs all have one type, in which it computes. What is not defined here is the layer's own.

    With ``mixed`` inputs it has no precision, which would be that of all of them.
    """

    def __init__(self, real_module: Any, layer: Any, dtype: DataType, mixed: bool = False) -> None:
        for name, value in (("layer", layer), ("dtype", dtype)):
            object.__setattr__(self, name, value)
        if not dtype.is_float:
            return
        if not mixed:
            layer.precision = dtype.of(real_module)
        for number in range(layer.num_outputs):
            layer.set_output_type(number, dtype.of(real_module))

    def get_output(self, number: int) -> Tensor:
        """An output."""
        return Tensor(self.layer.get_output(number), self.dtype)

    def set_input(self, number: int, tensor: Any) -> None:
        """Replace or add an input."""
        self.layer.set_input(number, tensor.real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.layer, name, value)


class Network:
    """What lowering calls of INetworkDefinition, over the old one in ``real``."""

    def __init__(self, real_module: Any, real: Any, builder: Any) -> None:
        self.real_module = real_module
        self.real = real
        self.builder = builder
        self.has_half = False
        self.int64_inputs: set[str] = set()
        self._kept: list[Any] = []
        self._unnamed = itertools.count()

    def _layer(self, layer: Any, dtype: DataType, mixed: bool = False) -> Layer:
        self.has_half |= dtype is DataType.HALF
        return Layer(self.real_module, layer, dtype, mixed)

    def constant(self, name: str, values: Any) -> Tensor:
        """A constant of the bridge's own; integers are int32."""
        values = np.array(values, order="C")
        self._kept.append(values)
        types = {np.float32: DataType.FLOAT, np.float16: DataType.HALF, np.int32: DataType.INT32}
        layer = self.real.add_constant(values.shape, self.real_module.Weights(values))
        made = self._layer(layer, types[values.dtype.type])
        made.name = f"{name}#{next(self._unnamed)}"
        return made.get_output(0)

    def add_input(self, name: str, dtype: DataType, shape: Sequence[int]) -> Any:
        if dtype is not DataType.INT64:
            return Tensor(self.real.add_input(name, dtype.of(self.real_module), tuple(shape)), dtype)
        self.int64_inputs.add(name)
        return Int64Input(self, self.real.add_input(name, self.real_module.int32, (*shape, PAIR)))

    def add_constant(self, shape: Sequence[int], weights: Weights) -> Layer:
        self._kept.append(weights)
        return self._layer(self.real.add_constant(tuple(shape), weights.real), weights.dtype)

    def set_weights_name(self, weights: Weights, name: str) -> bool:
        return bool(self.real.set_weights_name(weights.real, name))

    def mark_weights_refittable(self, name: str) -> bool:
        return True  # all are, with the flag REFIT

    def mark_output(self, tensor: Tensor) -> None:
        self.real.mark_output(tensor.real)
        # What the layer says of its output is not enough for one of the network.
        self.real.get_output(self.real.num_outputs - 1).dtype = tensor.dtype.of(self.real_module)

    def add_cast(self, x: Any, dtype: DataType) -> Layer:
        return self._layer(self.real.add_identity(x.real), dtype)

    def add_gather(self, data: Any, indices: Any, axis: int, rows_apart: int = 0) -> Layer:
        layer = self.real.add_gather(data.real, indices.real, axis)
        layer.num_elementwise_dims = rows_apart
        return self._layer(layer, data.dtype)

    def copied(self, name: str, x: Any) -> Any:
        """A copy, at which TensorRT stops to fuse layers; ``x`` itself without our plugins."""
        plugin = self.builder.copy_plugin()
        if plugin is None:
            return x
        layer = self._layer(self.real.add_plugin_v2([x.real], plugin), x.dtype)
        layer.name = name
        return layer.get_output(0)

    def add_elementwise(self, x: Any, y: Any, operation: Any) -> Layer:
        assert x.dtype is y.dtype, f"{operation} of {x.dtype} and {y.dtype}"
        compared = operation.name in ("LESS", "GREATER")
        return self._layer(self.real.add_elementwise(x.real, y.real, operation), DataType.BOOL if compared else x.dtype)

    def add_unary(self, x: Any, operation: Any) -> Layer:
        return self._layer(self.real.add_unary(x.real, operation), x.dtype)

    def add_activation(self, x: Any, kind: Any) -> Layer:
        return self._layer(self.real.add_activation(x.real, kind), x.dtype)

    def add_reduce(self, x: Any, operation: Any, axes: int, keep: bool) -> Layer:
        return self._layer(self.real.add_reduce(x.real, operation, axes, keep), x.dtype)

    def add_shuffle(self, x: Any) -> Layer:
        return self._layer(self.real.add_shuffle(x.real), x.dtype)

    def add_shape(self, x: Any) -> Layer:
        return self._layer(self.real.add_shape(x.real), DataType.INT64)

    def add_slice(self, x: Any, start: Sequence[int], shape: Sequence[int], stride: Sequence[int]) -> Layer:
        return self._layer(self.real.add_slice(x.real, tuple(start), tuple(shape), tuple(stride)), x.dtype)

    def add_matrix_multiply(self, x: Any, op0: Any, y: Any, op1: Any) -> Layer:
        assert x.dtype is y.dtype, f"the product of {x.dtype} and {y.dtype}"
        return self._layer(self.real.add_matrix_multiply(x.real, op0, y.real, op1), x.dtype)

    def add_select(self, condition: Any, x: Any, y: Any) -> Layer:
        assert condition.dtype is DataType.BOOL and x.dtype is y.dtype
        return self._layer(self.real.add_select(condition.real, x.real, y.real), x.dtype)

    def add_softmax(self, x: Any, axis: int) -> Layer:
        layer = self.real.add_softmax(x.real)
        layer.axes = 1 << axis
        return self._layer(layer, x.dtype)

    def add_plugin_v3(self, tensors: Sequence[Any], shapes: Sequence[Any], plugin: Any) -> Layer:
        assert not shapes
        layer = self.real.add_plugin_v2([tensor.memory for tensor in tensors], plugin)
        return self._layer(layer, tensors[0].dtype, mixed=True)

    def add_rotary_embedding(self, x: Any, cos: Any, sin: Any, interleaved: bool, dim: int) -> Any:
        assert not interleaved
        return compositions.RotaryEmbedding(self, x, cos, sin, dim)

    def add_kv_cache_update(self, cache: Any, update: Any, starts: Any, mode: Any) -> Any:
        self.real.name = COMPOSED_CACHES
        return compositions.CacheUpdate(self, cache, update, starts)

    def add_attention_v2(self, q: Any, k: Any, v: Any, normalization: Any, mask: Any) -> Any:
        return compositions.Attention(self, q, k, v)
