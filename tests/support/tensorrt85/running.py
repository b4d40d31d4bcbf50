"""The runtime: engines and contexts over the old ones. An int32 input whose last extent is 2 is an int64 one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.tensorrt85.network import PAIR

USER_MANAGED = "USER_MANAGED"


class Runtime:
    """What opening a plan calls of IRuntime."""

    def __init__(self, real_module: Any, registry: Any, logger: Any) -> None:
        self._real_module = real_module
        self._registry = registry
        self._real = real_module.Runtime(logger)

    def get_plugin_registry(self) -> Any:
        return self._registry

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        engine = self._real.deserialize_cuda_engine(plan)
        return None if engine is None else Engine(self._real_module, engine)


class Engine:
    """What a session calls of ICudaEngine. The rest is the old engine's."""

    def __init__(self, real_module: Any, real: Any) -> None:
        self._real_module = real_module
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shapes = [tuple(shape) for shape in self.real.get_tensor_profile_shape(name, profile)]
        return [shape[:-1] for shape in shapes] if self.is_int64(name) else shapes

    def is_int64(self, name: str) -> bool:
        """Whether the tensor is one of int32 pairs."""
        shape = tuple(self.real.get_tensor_shape(name))
        is_input = self.real.get_tensor_mode(name) == self._real_module.TensorIOMode.INPUT
        integers = self.real.get_tensor_dtype(name) == self._real_module.int32
        return is_input and integers and len(shape) > 1 and shape[-1] == PAIR

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return int(self.real.device_memory_size)

    def create_execution_context(self, strategy: str) -> Context | None:
        assert strategy == USER_MANAGED
        context = self.real.create_execution_context_without_device_memory()
        return None if context is None else Context(self, context)


class Context:
    """What a session calls of IExecutionContext. The rest is the old context's."""

    def __init__(self, engine: Engine, real: Any) -> None:
        self._engine = engine
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def set_device_memory(self, address: int, size: int) -> None:
        self.real.device_memory = address

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        extra = (PAIR,) if self._engine.is_int64(name) else ()
        return bool(self.real.set_input_shape(name, (*shape, *extra)))


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
