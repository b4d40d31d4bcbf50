"""A TensorRT plan on a GPU: checked, deserialized or refitted, and run with torch's memory on torch's stream.

Every use of TensorRT is checked against its own bindings, of 10.15.1, 11.0 and 11.4.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d3llm_trt.errors import EngineError, PluginError
from d3llm_trt.files import replace_file
from d3llm_trt.gpus import AMPERE, capability_name
from d3llm_trt.manifest import PLAN_FILE, REBUILD, WEIGHTS_FILE, Manifest, PluginFacts
from d3llm_trt.plugins.tensorrt_plugin import find_plugin_library, load_plugin
from d3llm_trt.tensorrt_module import PACKAGES, tensorrt_dtype, version_numbers
from d3llm_trt.tensorrt_objects import Messages, make_messages, make_object

ALIGNMENT = 256


def open_plan(trt: Any, directory: Path, manifest: Manifest, device: torch.device) -> Any:
    """The engine of a verified directory, refitted if its plan has no weights. Raises EngineError with what to do."""
    check_fits(trt.__version__, torch.cuda.get_device_capability(device), manifest)
    runtime, messages = make_runtime(trt)
    if manifest.plugin is not None:
        load_checked_plugin(runtime.get_plugin_registry(), manifest.plugin)
    options = manifest.build_config.plan
    if options.version_compatible:
        # Such a plan brings the code that runs it; its checksum was verified.
        runtime.engine_host_code_allowed = True
    messages.errors.clear()
    with on_device(device):
        engine = runtime.deserialize_cuda_engine((directory / PLAN_FILE).read_bytes())
        if engine is None:
            why = f"TensorRT {trt.__version__} cannot load it: {messages.last_errors()}"
            raise EngineError(f"{directory / PLAN_FILE}: {why}; {REBUILD} on this machine")
        if options.strip_weights:
            refit(trt, engine, directory / WEIGHTS_FILE, messages)
        if options.weight_streaming:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    return engine


def make_runtime(trt: Any) -> tuple[Any, Messages]:
    """A runtime and the messages it gives, which are printed too. Raises EngineError where TensorRT makes none."""
    messages = make_messages(trt, trt.Logger(trt.Logger.WARNING))
    runtime = make_object(trt.Runtime, messages)
    if runtime is None:
        fix = "update the NVIDIA driver, or install a TensorRT for its CUDA version"
        raise EngineError(f"TensorRT {trt.__version__} gave no runtime: {messages.last_errors()}; {fix}")
    return runtime, messages


def check_fits(version: str, capability: tuple[int, int], manifest: Manifest) -> None:
    """Raise EngineError unless a plan runs with this TensorRT on this GPU."""
    options, here = manifest.build_config.plan, capability_name(capability)
    built = manifest.backend_version
    newer_is_fine = options.version_compatible and version_numbers(version) >= version_numbers(built)
    if version != built and not newer_is_fine:
        install = f"install {PACKAGES[manifest.backend].name} {built}"
        raise EngineError(
            f"the plan was built with TensorRT {built}, and {version} is installed; {install}, or {REBUILD}"
        )
    compatible = options.hardware_compatible and capability >= AMPERE
    if manifest.compute_capabilities and here not in manifest.compute_capabilities and not compatible:
        listed = ", ".join(manifest.compute_capabilities)
        raise EngineError(
            f"the plan is for compute capabilities {listed}, and this GPU has {here}; {REBUILD} for {here}"
        )


def load_checked_plugin(registry: Any, wanted: PluginFacts) -> None:
    """Load the plugin library for a plan. Raises EngineError unless its version is that of the build.

    Another build of that version, say for other GPUs, is taken with a warning.
    """
    try:
        library = find_plugin_library()
        if library.version != wanted.version:
            raise EngineError(
                f"the plan needs plugin library {wanted.version}, and {library.path} is {library.version}; {REBUILD}"
            )
        if library.sha256 != wanted.sha256:
            warnings.warn(f"{library.path} is another build of the plugin library than the plan's", stacklevel=2)
        load_plugin(registry)
    except PluginError as error:
        raise EngineError(f"the plan needs plugin library {wanted.version}: {error}") from error


def refit(trt: Any, engine: Any, path: Path, messages: Messages) -> None:
    """Give a stripped plan its weights, which are named as in ``path``; ``messages`` are the runtime's."""
    from safetensors import safe_open

    refitter = make_object(functools.partial(trt.Refitter, engine), messages)
    if refitter is None:
        raise EngineError(f"{path}: TensorRT takes no weights for the plan: {messages.last_errors()}; {REBUILD}")
    kept = []
    with safe_open(path, framework="pt") as file:
        for name in refitter.get_all_weights():
            if name not in file.keys():  # noqa: SIM118
                continue
            tensor = file.get_tensor(name)
            kept.append(tensor)
            weights = trt.Weights(tensorrt_dtype(trt, tensor.dtype), tensor.data_ptr(), tensor.numel())
            if not refitter.set_named_weights(name, weights):
                raise EngineError(f"{path}: TensorRT refuses the weight {name}: {messages.last_errors()}; {REBUILD}")
    if missing := refitter.get_missing_weights():
        raise EngineError(f"{path}: the plan also wants {sorted(missing)[0]}; {REBUILD}")
    if not refitter.refit_cuda_engine():
        raise EngineError(f"{path}: TensorRT could not refit the plan: {messages.last_errors()}; {REBUILD}")


def plan_layers(trt: Any, engine: Any) -> list[dict[str, Any]]:
    """What the engine inspector says of each layer."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return [layer if isinstance(layer, dict) else {"Name": layer} for layer in layers]


class TensorRTSession:
    """Runs one deserialized engine. Memory is torch's: scratch is allocated once for the largest profile."""

    def __init__(self, trt: Any, engine: Any, device: torch.device, runtime_cache: Path | None = None) -> None:
        self._trt = trt
        self._engine = engine
        self._device = device
        self._inputs, self._outputs = self._names()
        self._profiles = [
            {name: engine.get_tensor_profile_shape(name, number) for name in self._inputs}
            for number in range(engine.num_optimization_profiles)
        ]
        with on_device(device):
            self._cache = RuntimeCache(engine, runtime_cache) if runtime_cache is not None else None
            self._context = self._make_context()
        self._profile = -1
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}

    def _names(self) -> tuple[list[str], list[str]]:
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        return inputs, [name for name in names if name not in inputs]

    def _make_context(self) -> Any:
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            context = self._engine.create_execution_context(strategy)
        else:
            self._cache.config.set_execution_context_allocation_strategy(strategy)
            context = self._engine.create_execution_context(self._cache.config)
        if context is None:
            raise EngineError("TensorRT gave no execution context; free GPU memory, or build for fewer tokens")
        sizes = [self._engine.get_device_memory_size_for_profile_v2(number) for number in range(len(self._profiles))]
        self._scratch = torch.empty(max(sizes) + ALIGNMENT, dtype=torch.uint8, device=self._device)
        start = -self._scratch.data_ptr() % ALIGNMENT
        context.set_device_memory(self._scratch.data_ptr() + start, max(sizes))
        return context

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Enqueue one execution on the current stream. Raises EngineError naming the tensor that does not fit."""
        with on_device(self._device):
            self._run(tensors)

    def _run(self, tensors: Mapping[str, Tensor]) -> None:
        if strange := [name for name in (*self._inputs, *self._outputs) if name not in tensors]:
            raise EngineError(f"the plan has a tensor {strange[0]}, so it is of another model or attention; {REBUILD}")
        stream = torch.cuda.current_stream(self._device).cuda_stream
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

    def close(self) -> None:
        """Keep what was compiled at run time."""
        if self._cache is not None:
            self._cache.save()


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Whatever TensorRT does happens on the current GPU, so make ``device`` that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _fits(tensor: Tensor, ranges: Any) -> bool:
    low, _, high = ranges
    return len(low) == tensor.ndim and all(a <= b <= c for a, b, c in zip(low, tensor.shape, high, strict=True))


class RuntimeCache:
    """TensorRT for RTX's cache of kernels compiled on the user's GPU, in a file beside the engine directory."""

    def __init__(self, engine: Any, path: Path) -> None:
        self._path = path
        self.config = engine.create_runtime_config()
        self._cache = self.config.create_runtime_cache()
        if path.exists():
            self._cache.deserialize(path.read_bytes())
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file, at once; without it kernels are only compiled again."""
        try:
            replace_file(self._path, bytes(self._cache.serialize()))
        except OSError as error:
            warnings.warn(f"runtime cache {self._path}: cannot be written: {error}", stacklevel=2)
