"""The runtime: engines and contexts over the old ones. An int32 input whose last extent is 2 is an int64 one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from tests.support.tensorrt85.network import COMPOSED_CACHES, PAIR

USER_MANAGED = "USER_MANAGED"


class Runtime:
    """What opening a plan calls of IRuntime."""

    def __init__(self, real_module: Any, registry: Any, logger: Any) -> None:
        self._real_module = real_module
        self._registry = registry
        self._real = real_module.Runtime(logger)
        registry.load()  # a plan may have any of our plugins

    def get_plugin_registry(self) -> Any:
        return self._registry

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        load = partial(self._real.deserialize_cuda_engine, plan)
        engine = load()
        return None if engine is None else Engine(self._real_module, engine, load)


class Engine:
    """What a session calls of ICudaEngine. The rest is the old engine's.

    A profile of the old one is for one context at a time, so that every context after the first is of an engine of its
    own, which ``load`` makes.
    """

    def __init__(self, real_module: Any, real: Any, load: Callable[[], Any]) -> None:
        self._real_module = real_module
        self.real = real
        self._load = load
        self._has_context = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shapes = [tuple(shape) for shape in self.real.get_tensor_profile_shape(name, profile)]
        return [shape[:-1] for shape in shapes] if self.is_int64(name) else shapes

    def is_input(self, name: str) -> bool:
        """Whether the tensor is an input."""
        return bool(self.real.get_tensor_mode(name) == self._real_module.TensorIOMode.INPUT)

    def is_int64(self, name: str) -> bool:
        """Whether the tensor is one of int32 pairs."""
        shape = tuple(self.real.get_tensor_shape(name))
        integers = self.real.get_tensor_dtype(name) == self._real_module.int32
        return self.is_input(name) and bool(integers) and len(shape) > 1 and shape[-1] == PAIR

    def item_size(self, name: str) -> int:
        """Bytes of one value of a float tensor."""
        return 2 if self.real.get_tensor_dtype(name) == self._real_module.float16 else 4

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return int(self.real.device_memory_size)

    def create_execution_context(self, strategy: str) -> Context | None:
        assert strategy == USER_MANAGED
        engine = self._load() if self._has_context else self.real
        self._has_context = True
        context = engine.create_execution_context_without_device_memory()
        return None if context is None else Context(self, context)


class Context:
    """What a session calls of IExecutionContext. The rest is the old context's.

    A composed cache goes into memory of the bridge, and from there to its place once the plan has run.
    """

    def __init__(self, engine: Engine, real: Any) -> None:
        self._engine = engine
        self.real = real
        self._inputs: dict[str, int] = {}
        self._copies: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def set_device_memory(self, address: int, size: int) -> None:
        self.real.device_memory = address

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        extra = (PAIR,) if self._engine.is_int64(name) else ()
        return bool(self.real.set_input_shape(name, (*shape, *extra)))

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self._engine.is_input(name):
            self._inputs[name] = address
        elif self._engine.name == COMPOSED_CACHES and address in self._inputs.values():
            address = self._memory_beside(name, address)
        return bool(self.real.set_tensor_address(name, address))

    def _memory_beside(self, name: str, address: int) -> int:
        """Memory of the bridge for an output, whose place is ``address``."""
        size = math.prod(self.real.get_tensor_shape(name)) * self._engine.item_size(name)
        beside = torch.empty(size, dtype=torch.uint8, device="cuda")
        self._copies[name] = (bytes_at(address, size), beside)
        return beside.data_ptr()

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == torch.cuda.current_stream().cuda_stream  # the copies go there
        if not self.real.execute_async_v3(stream):
            return False
        for place, beside in self._copies.values():
            place.copy_(beside)
        return True


def bytes_at(address: int, size: int) -> torch.Tensor:
    """Memory of the GPU as a tensor."""
    described = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
    return torch.as_tensor(SimpleNamespace(__cuda_array_interface__=described), device="cuda")


class Refitter:
    """What refitting calls of IRefitter."""

    def __init__(self, real_module: Any, engine: Engine, logger: Any) -> None:
        self._real = real_module.Refitter(engine.real, logger)
        self._kept: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def set_named_weights(self, name: str, weights: Any) -> bool:
        self._kept.append(weights)
        return bool(self._real.set_named_weights(name, weights.real))
