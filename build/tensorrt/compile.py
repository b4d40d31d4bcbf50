"""A network compiled into a plan file: profiles, flags, timing cache, progress, and errors in the model's words."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d3llm_trt.build.tensorrt.lowering import Lowering
from d3llm_trt.build.tensorrt.network import Binding, BuiltNetwork
from d3llm_trt.config import PlanConfig
from d3llm_trt.errors import BuildError
from d3llm_trt.files import replace_file
from d3llm_trt.manifest import FileFacts
from d3llm_trt.progress import OnProgress
from d3llm_trt.tensorrt_objects import Messages, make_messages, make_object


def make_builder(trt: Any) -> tuple[Any, Messages]:
    """A builder and the messages it gives. Raises BuildError with them where TensorRT makes none."""
    messages = make_messages(trt)
    builder = make_object(trt.Builder, messages)
    if builder is None:
        raise BuildError(f"TensorRT {trt.__version__} gave no builder: {messages.last_errors()}")
    return builder, messages


def compile_plan(
    trt: Any,
    builder: Any,
    messages: Messages,
    built: BuiltNetwork,
    options: PlanConfig,
    path: Path,
    progress: OnProgress | None = None,
) -> FileFacts:
    """Build the plan into ``path`` as a stream. Raises BuildError with TensorRT's own words; Ctrl-C ends the build."""
    config = builder.create_builder_config()
    _set_options(trt, config, options)
    _add_profiles(builder, config, built.bindings)
    if options.strip_weights:
        _mark_matrices(built.lowering)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    cache = _load_timing_cache(config, options.timing_cache)
    with path.open("wb") as file, _interrupts_to(monitor):
        writer = _writer(trt, file)
        done = builder.build_serialized_network_to_stream(built.lowering.network, config, writer)
    for reason in (monitor.reason, writer.error):
        if reason is not None:
            raise reason
    if not done:
        raise BuildError(_explained(messages, built.lowering.given))
    _save_timing_cache(cache, options.timing_cache)
    return FileFacts(writer.digest.hexdigest(), writer.size)


def _set_options(trt: Any, config: Any, options: PlanConfig) -> None:
    config.builder_optimization_level = options.optimization_level
    config.clear_flag(trt.BuilderFlag.TF32)
    # So that the engine inspector can tell layers by the model's names.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * (1 << 30)))
    for enabled, flags in (
        (options.version_compatible, ("VERSION_COMPATIBLE",)),
        (options.weight_streaming, ("WEIGHT_STREAMING",)),
        (options.strip_weights, ("STRIP_PLAN", "REFIT_INDIVIDUAL")),
    ):
        for flag in flags if enabled else ():
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.attention == "plugin":
        # The plugin writes the window's K and V into the cache it was given.
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.compute_capabilities is not None:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            name = "SM" + capability.replace(".", "")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _add_profiles(builder: Any, config: Any, bindings: Iterable[Binding]) -> None:
    inputs = list(bindings)
    for number in range(len(inputs[0].profiles)):
        profile = builder.create_optimization_profile()
        for binding in inputs:
            profile.set_shape(binding.name, *binding.profiles[number])
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"TensorRT refused the optimization profile {number}; see its messages")


def _mark_matrices(lowering: Lowering) -> None:
    """Leave matrices alone out of a stripped plan: vectors, scales and tables of angles are small, and stay in it."""
    for name, tensor in lowering.named.items():
        if tensor.ndim > 1 and not lowering.network.mark_weights_refittable(name):
            raise BuildError(f"TensorRT refused to leave out the weight {name}; build without strip_weights")


@contextmanager
def _interrupts_to(monitor: Any) -> Iterator[None]:
    """Ctrl-C asks the monitor to cancel: raised inside a callback, TensorRT would swallow it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: object) -> None:
        monitor.reason = KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _monitor(trt: Any, progress: OnProgress | None) -> Any:
    """A progress monitor that cancels the build once it has a ``reason``, an exception."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.reason: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                if progress is not None:
                    progress(phase.lower(), step + 1, max(self._steps.get(phase, 1), step + 1))
            except BaseException as error:  # noqa: BLE001 (raised again when TensorRT has returned)
                self.reason = error
            return self.reason is None

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()


def _writer(trt: Any, file: Any) -> Any:
    """A stream writer that counts, hashes, and keeps the error of a full disk."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.digest = hashlib.sha256()
            self.size = 0
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                file.write(data)
            except OSError as error:
                self.error = error
                return 0
            self.digest.update(data)
            self.size += len(data)
            return len(data)

    return Writer()


def _load_timing_cache(config: Any, path: str | None) -> Any:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes() if Path(path).exists() else b""
    except OSError as error:
        raise BuildError(f"timing cache {path}: cannot be read: {error.strerror}") from error
    if not os.access(Path(path).absolute().parent, os.W_OK):
        raise BuildError(f"timing cache {path}: its folder cannot be written to; name a file in another one")
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BuildError(f"timing cache {path}: not one of this TensorRT; delete it or name another")
    return cache


def _save_timing_cache(cache: Any, path: str | None) -> None:
    if cache is None or path is None:
        return
    try:
        replace_file(Path(path), bytes(cache.serialize()))
    except OSError as error:
        # The plan is finished; the next build only takes longer.
        warnings.warn(f"timing cache {path}: cannot be written: {error}", stacklevel=2)


def _explained(messages: Messages, names: Iterable[str]) -> str:
    """The failure in the model's words: the layer that TensorRT's messages mention, and the messages."""
    text = messages.last_errors()
    places = sorted((name for name in names if name in text), key=len)
    where = f" at {places[-1]}" if places else ""
    return f"TensorRT could not build the plan{where}: {text}"
