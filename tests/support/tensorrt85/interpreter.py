"""The interpreter with the layers that the bridge composes others of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.interpreter import ELEMENTWISE, Interpreter

MORE = {
    "SUB": torch.sub, "MAX": torch.maximum, "MIN": torch.minimum, "AND": torch.logical_and, "GREATER": torch.gt,
}  # fmt: skip


class BridgeInterpreter(Interpreter):
    """Walks a network that was made through the bridge."""

    elementwise = ELEMENTWISE | MORE

    def _gather(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        data, indices = inputs
        axis = layer.axis
        assert int(indices.min()) >= 0 and int(indices.max()) < data.shape[axis]
        if layer.num_elementwise_dims == 0:
            return data[(slice(None),) * axis + (indices,)]
        assert layer.num_elementwise_dims == 1
        rows = [row[(slice(None),) * (axis - 1) + (index,)] for row, index in zip(data, indices, strict=True)]
        return torch.stack(rows)

    def _shuffle(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        if layer.num_inputs == 1:
            return super()._shuffle(layer, inputs)
        return inputs[0].reshape(inputs[1].tolist())

    def _matrix_multiply(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        x, y = inputs
        assert x.dtype == y.dtype and x.ndim == y.ndim and layer.op0 == self._trt.MatrixOperation.NONE
        return x @ (y.transpose(-1, -2) if layer.op1 == self._trt.MatrixOperation.TRANSPOSE else y)

    def _select(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        return torch.where(*inputs)

    def _softmax(self, layer: Any, inputs: list[Tensor]) -> Tensor:
        (axis,) = (axis for axis in range(inputs[0].ndim) if layer.axes >> axis & 1)
        return inputs[0].softmax(axis)
