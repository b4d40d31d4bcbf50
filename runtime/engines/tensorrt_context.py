"""One execution context of a plan: its profile, shapes and addresses, each set only where it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from d3llm_trt.errors import EngineError

Ranges = Mapping[str, Any]  # smallest, usual and largest shape by input


class BoundContext:
    """An ``IExecutionContext`` and what it was told so far.

    Args:
        context: fresh, with its scratch memory.
        inputs: names of the engine's inputs.
        outputs: names of its outputs.
        profiles: the shapes that each optimization profile takes.
    """

    def __init__(self, context: Any, inputs: Sequence[str], outputs: Sequence[str], profiles: Sequence[Ranges]) -> None:
        self._context = context
        self._inputs, self._outputs, self._profiles = inputs, outputs, profiles
        self._profile = -1
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}

    def run(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        """Enqueue one execution on a ``cudaStream_t``. Raises EngineError naming the tensor that does not fit."""
        self._choose_profile(tensors, stream)
        for name in self._inputs:
            self._bind_shape(name, tensors[name])
        for name in (*self._inputs, *self._outputs):
            self._bind_address(name, tensors[name])
        if not self._context.execute_async_v3(stream):
            raise EngineError("TensorRT could not enqueue the plan; see its messages")

    def _choose_profile(self, tensors: Mapping[str, Tensor], stream: int) -> None:
        fitting = (
            number
            for number, ranges in enumerate(self._profiles)
            if all(_fits(tensors[name], ranges[name]) for name in self._inputs)
        )
        chosen = next(fitting, None)
        if chosen is None:
            shapes = {name: tuple(tensors[name].shape) for name in self._inputs if "cache" not in name}
            raise EngineError(f"no optimization profile takes {shapes}; build with larger token_buckets")
        if chosen != self._profile:
            if not self._context.set_optimization_profile_async(chosen, stream):
                raise EngineError(f"TensorRT refused the optimization profile {chosen}; see its messages")
            self._profile = chosen
            self._bound.clear()

    def _bind_shape(self, name: str, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
        if name in self._bound and self._bound[name][1] == shape:
            return
        if not self._context.set_input_shape(name, shape):
            raise EngineError(f"TensorRT refused the shape {shape} of {name}; see its messages")

    def _bind_address(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_contiguous():
            raise EngineError(f"{name} is not contiguous; this is a bug, report it")
        wanted = (tensor.data_ptr(), tuple(tensor.shape))
        if self._bound.get(name) == wanted:
            return
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            raise EngineError(f"TensorRT refused the memory of {name}; see its messages")
        self._bound[name] = wanted


def _fits(tensor: Tensor, ranges: Any) -> bool:
    low, _, high = ranges
    return len(low) == tensor.ndim and all(a <= b <= c for a, b, c in zip(low, tensor.shape, high, strict=True))
