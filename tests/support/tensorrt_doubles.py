"""Doubles of what TensorRT makes of a plan on a GPU: the engine and its context, a refitter, a cache of kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from d3llm_trt.plugins import tensorrt_plugin
from d3llm_trt.plugins.tensorrt_plugin import PluginLibrary
from tests.support.tensorrt_uses import Double, RecordedModule, add_method
from tests.support.tensorrt_wheels import ALL, FULL, RTX

OURS = ("D3llmBidirectionalAttention", "1", "")
Call = tuple[Any, ...]
Ranges = dict[str, tuple[Any, Any, Any]]


@dataclass
class PlanDouble:
    """A deserialized plan.

    Args:
        trt: the real module whose enumerations are used.
        profiles: smallest, usual and largest shape of every input, by profile.
        outputs: names.
        refuse: calls that TensorRT answers with False.
        calls: what was called, as ``(name, *arguments)``.
    """

    trt: ModuleType
    profiles: list[Ranges]
    outputs: list[str]
    refuse: set[str] = field(default_factory=set)
    calls: list[Call] = field(default_factory=list)

    def engine(self, fits: tuple[str, ...] = ALL, **methods: Callable[..., Any]) -> Double:
        """The ICudaEngine; ``methods`` are further ones, or take the place of its own."""
        names = [*self.profiles[0], *self.outputs]
        mode = self.trt.TensorIOMode
        own: dict[str, Callable[..., Any]] = {
            "get_tensor_name": lambda number: names[number],
            "get_tensor_mode": lambda name: mode.OUTPUT if name in self.outputs else mode.INPUT,
            "get_tensor_profile_shape": lambda name, number: list(map(self.trt.Dims, self.profiles[number][name])),
            "get_device_memory_size_for_profile_v2": lambda number: 1000 * (number + 1),
            "create_execution_context": self._logged("create_execution_context", self.context(fits)),
        }
        counts = {"num_optimization_profiles": len(self.profiles), "num_io_tensors": len(names)}
        return Double("ICudaEngine", {**own, **methods}, counts, fits)

    def context(self, fits: tuple[str, ...] = ALL) -> Double:
        """The IExecutionContext, which logs every call."""
        asked = ("set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3")
        methods = {name: self._logged(name) for name in asked}
        methods["set_device_memory"] = self._logged("set_device_memory", None)
        return Double("IExecutionContext", methods, fits=fits)

    def _logged(self, name: str, *answer: Any) -> Callable[..., Any]:
        """A method that gives ``answer``, by default whether it is not to be refused."""

        def method(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return answer[0] if answer else name not in self.refuse

        return method

    def rtx_engine(self, cache: Any) -> Double:
        """The engine of TensorRT for RTX, whose context is made from a configuration with a cache of kernels."""
        config = Double(
            "IRuntimeConfig",
            {
                "create_runtime_cache": lambda: cache,
                "set_runtime_cache": self._logged("set_runtime_cache"),
                "set_execution_context_allocation_strategy": self._logged("strategy", None),
            },
            fits=(RTX,),
        )
        return self.engine((RTX,), create_runtime_config=self._logged("create_runtime_config", config))


def cache_double(held: list[bytes]) -> Double:
    """A cache of kernels that holds the last of ``held``."""

    def deserialize(data: bytes) -> bool:
        held.append(data)
        return True

    return Double("IRuntimeCache", {"serialize": lambda: Memory(held[-1]), "deserialize": deserialize}, fits=(RTX,))


class Memory(Double):
    """An IHostMemory, which Python reads as bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__("IHostMemory")
        vars(self)["data"] = data

    def __bytes__(self) -> bytes:
        return bytes(vars(self)["data"])


def give_plugin_layers(trt: ModuleType, patch: pytest.MonkeyPatch, fits: tuple[str, ...] = FULL) -> list[Call]:
    """Give networks of ``trt`` plugin layers, which that of TensorRT for RTX lacks.

    A layer's outputs come from inputs of the network, of the shapes that our plugin's outputs have. Returns a list that
    fills with ``(inputs, shape inputs, plugin)`` of every layer.
    """
    made: list[Call] = []

    def add_plugin_v3(network: Any, inputs: list[Any], shape_inputs: list[Any], plugin: Any) -> Double:
        made.append((inputs, shape_inputs, plugin))
        qkv, cache = inputs[:2]
        width = qkv.shape[1] - 2 * cache.shape[2] * cache.shape[4]
        forms = ((qkv.dtype, (-1, width)), (cache.dtype, tuple(cache.shape)))
        inputs = [network.add_input(f"plugin.{len(made)}.{index}", *form) for index, form in enumerate(forms)]
        outputs = [network.add_identity(tensor).get_output(0) for tensor in inputs]
        return Double("IPluginV3Layer", {"get_output": outputs.__getitem__}, {"name": ""}, fits)

    add_method(trt.INetworkDefinition, "add_plugin_v3", add_plugin_v3, patch, fits)
    return made


def give_creator(trt: ModuleType, patch: pytest.MonkeyPatch, fits: tuple[str, ...] = FULL) -> list[Call]:
    """Let builders of ``trt`` find our plugin's creator once they have loaded its library, which need not be there.

    Returns a list that fills with what the creator is asked to create.
    """
    asked: list[Call] = []

    def create_plugin(name: str, fields: Any, phase: Any) -> Double:
        asked.append((name, {field.name: list(field.data) for field in fields}, phase))
        return Double("IPluginV3", fits=fits)

    creator = Double("IPluginCreatorV3One", {"create_plugin": create_plugin}, fits=fits)
    there: dict[Call, Double] = {}

    def load_library(path: str) -> Double:
        there[OURS] = creator
        return Double("PyCapsule", fits=fits)

    methods = {"get_creator": lambda *names: there.get(names), "load_library": load_library}
    registry = Double("IPluginRegistry", methods, fits=fits)
    patch.setattr(tensorrt_plugin, "find_plugin_library", lambda: PluginLibrary(Path("library"), "", ""))
    add_method(trt.Builder, "get_plugin_registry", lambda builder: registry, patch, fits)
    return asked


def refitting(trt: ModuleType, names: list[str], given: dict[str, Any], fits: tuple[str, ...] = FULL) -> RecordedModule:
    """The module with refitters that want ``names`` and put what they get into ``given``."""

    def set_named_weights(name: str, weights: Any) -> bool:
        given[name] = (weights.dtype, weights.size)
        return True

    def refit_cuda_engine() -> bool:
        given["refitted"] = True
        return True

    def refitter(engine: Any, logger: Any) -> Double:
        methods: dict[str, Callable[..., Any]] = {
            "get_all_weights": lambda: names,
            "set_named_weights": set_named_weights,
            "get_missing_weights": lambda: [name for name in names if name not in given],
            "refit_cuda_engine": refit_cuda_engine,
        }
        return Double("Refitter", methods, fits=fits)

    return RecordedModule(trt, fits, Refitter=refitter)
