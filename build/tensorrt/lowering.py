"""Lowering: an INetworkDefinition under construction, every layer named and checked, every weight kept alive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d3llm_trt.errors import BuildError
from d3llm_trt.tensorrt_module import tensorrt_dtype


class Lowering:
    """Adds layers to ``network`` and refuses to go on where TensorRT returns none.

    Args:
        trt: the TensorRT module.
        network: a strongly typed network.

    ITensors are passed on as they are. Names are places in the model, ``layers.3.attention.qkv``; one that is
    asked for again gets a number.
    """

    def __init__(self, trt: Any, network: Any) -> None:
        self.trt = trt
        self.network = network
        self.given: dict[str, Tensor] = {}
        self.named: dict[str, Tensor] = {}
        self._names: dict[str, int] = {}

    def layer(self, name: str, layer: Any) -> Any:
        """Name a new layer. Raises BuildError naming its place if TensorRT did not make one."""
        if layer is None:
            raise BuildError(f"TensorRT refused the layer {name}; see its messages, and file an issue with them")
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        layer.name = name if count == 0 else f"{name}#{count}"
        return layer

    def output(self, name: str, layer: Any) -> Any:
        """The only output of a new layer."""
        return self.layer(name, layer).get_output(0)

    def dtype(self, dtype: torch.dtype) -> Any:
        """TensorRT's name of a dtype."""
        return tensorrt_dtype(self.trt, dtype)

    def weight(self, name: str, tensor: Tensor, shape: Sequence[int] | None = None) -> Any:
        """A model weight as a constant that can be refitted under ``name``. It is not copied."""
        output, weights = self._constant(name, tensor, shape)
        if not self.network.set_weights_name(weights, name):
            raise BuildError(f"TensorRT refused to name the weight {name}; is it used twice?")
        self.named[name] = tensor
        return output

    def constant(self, name: str, tensor: Tensor) -> Any:
        """A constant that is part of the network itself."""
        return self._constant(name, tensor, None)[0]

    def _constant(self, name: str, tensor: Tensor, shape: Sequence[int] | None) -> tuple[Any, Any]:
        tensor = tensor.contiguous()
        weights = self.trt.Weights(self.dtype(tensor.dtype), tensor.data_ptr(), tensor.numel())
        dims = tuple(tensor.shape) if shape is None else tuple(shape)
        layer = self.layer(name, self.network.add_constant(dims, weights))
        # TensorRT reads the memory when it builds.
        self.given[layer.name] = tensor
        return layer.get_output(0), weights

    def cast(self, name: str, x: Any, dtype: torch.dtype) -> Any:
        """``x`` in another dtype; itself if it has that already."""
        target = self.dtype(dtype)
        return x if x.dtype == target else self.output(name, self.network.add_cast(x, target))

    def binary(self, name: str, x: Any, operation: str, y: Any) -> Any:
        """An elementwise operation by its TensorRT name: SUM, PROD, ..."""
        return self.output(name, self.network.add_elementwise(x, y, getattr(self.trt.ElementWiseOperation, operation)))

    def unary(self, name: str, x: Any, operation: str) -> Any:
        """SQRT, RECIP, ..."""
        return self.output(name, self.network.add_unary(x, getattr(self.trt.UnaryOperation, operation)))

    def reshape(
        self,
        name: str,
        x: Any,
        shape: Sequence[int],
        *,
        before: Sequence[int] | None = None,
        after: Sequence[int] | None = None,
    ) -> Any:
        """Reshape, with a transposition before or after; 0 keeps a dimension, -1 takes the rest."""
        layer = self.layer(name, self.network.add_shuffle(x))
        if before is not None:
            layer.first_transpose = tuple(before)
        layer.reshape_dims = tuple(shape)
        if after is not None:
            layer.second_transpose = tuple(after)
        return layer.get_output(0)

    def slice(self, name: str, x: Any, axis: int, start: int, size: int) -> Any:
        """``size`` elements of one axis, all of the others, whatever their run-time sizes."""
        rank = len(x.shape)
        keep = torch.ones(rank, dtype=torch.int64)
        keep[axis] = 0
        shape = self.output(f"{name}.shape", self.network.add_shape(x))
        others = self.binary(f"{name}.others", shape, "PROD", self.constant(f"{name}.keep", keep))
        sizes = self.binary(f"{name}.sizes", others, "SUM", self.constant(f"{name}.size", (1 - keep) * size))
        begin = self.constant(f"{name}.start", (1 - keep) * start)
        zeros, ones = (0,) * rank, (1,) * rank
        layer = self.layer(name, self.network.add_slice(x, zeros, ones, ones))
        layer.set_input(1, begin)
        layer.set_input(2, sizes)
        return layer.get_output(0)

    def matmul(self, name: str, x: Any, weight: Any) -> Any:
        """``x @ weight.T`` for matrices of the same rank."""
        operation = self.trt.MatrixOperation
        layer = self.network.add_matrix_multiply(x, operation.NONE, weight, operation.TRANSPOSE)
        return self.output(name, layer)
