"""The builder: its configuration, progress and output stream, over the old one that has fewer of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.tensorrt85.network import PAIR, Network

WORKSPACE = 2 << 30


class Builder:
    """What compiling calls of IBuilder."""

    def __init__(self, real_module: Any, registry: Any, logger: Any) -> None:
        self._real_module = real_module
        self._registry = registry
        self.real = real_module.Builder(logger)
        self._int64_inputs: set[str] = set()

    def get_plugin_registry(self) -> Any:
        return self._registry

    def copy_plugin(self) -> Any:
        return self._registry.copy_plugin()

    def create_network(self, flags: int) -> Network:
        explicit = 1 << int(self._real_module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
        network = Network(self._real_module, self.real.create_network(explicit), self)
        self._int64_inputs = network.int64_inputs
        return network

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig(self._real_module, self.real.create_builder_config())

    def create_optimization_profile(self) -> Profile:
        return Profile(self.real.create_optimization_profile(), self._int64_inputs)

    def build_serialized_network_to_stream(self, network: Network, config: BuilderConfig, writer: Any) -> bool:
        if network.has_half:
            config.real.set_flag(self._real_module.BuilderFlag.FP16)
        monitor, phase = config.progress_monitor, "Building"
        monitor.phase_start(phase, None, 1)
        plan = self.real.build_serialized_network(network.real, config.real)
        wanted = monitor.step_complete(phase, 0)
        monitor.phase_finish(phase)
        if plan is None or not wanted:
            return False
        data = bytes(plan)
        return bool(writer.write(data) == len(data))


class Profile:
    """An optimization profile; int64 inputs have an extent more than they seem to have."""

    def __init__(self, real: Any, int64_inputs: set[str]) -> None:
        self.real = real
        self._int64_inputs = int64_inputs

    def set_shape(self, name: str, *shapes: Sequence[int]) -> None:
        extra = (PAIR,) if name in self._int64_inputs else ()
        self.real.set_shape(name, *((*shape, *extra) for shape in shapes))


class BuilderConfig:
    """A configuration that obeys every layer's precision, and measures each kernel once."""

    def __init__(self, real_module: Any, real: Any) -> None:
        self.real = real
        self.progress_monitor: Any = None
        self.builder_optimization_level = 3  # there are none yet
        real.set_flag(real_module.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        real.set_preview_feature(real_module.PreviewFeature.FASTER_DYNAMIC_SHAPES_0805, True)
        sources = real_module.TacticSource
        real.set_tactic_sources(1 << int(sources.CUBLAS) | 1 << int(sources.CUBLAS_LT))
        real.set_memory_pool_limit(real_module.MemoryPoolType.WORKSPACE, WORKSPACE)
        real.avg_timing_iterations = 1

    @property
    def profiling_verbosity(self) -> Any:
        return self.real.profiling_verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, value: Any) -> None:
        self.real.profiling_verbosity = value

    def set_flag(self, flag: Any) -> None:
        self.real.set_flag(flag)

    def clear_flag(self, flag: Any) -> None:
        self.real.clear_flag(flag)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.real.set_memory_pool_limit(pool, size)

    def set_preview_feature(self, feature: Any, enabled: bool) -> None:
        assert feature == ALIASED_PLUGIN_IO and enabled  # outputs lie where the caller says, so also in an input

    def add_optimization_profile(self, profile: Profile) -> int:
        return int(self.real.add_optimization_profile(profile.real))

    def create_timing_cache(self, data: bytes) -> Any:
        return self.real.create_timing_cache(data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return bool(self.real.set_timing_cache(cache, ignore_mismatch))


ALIASED_PLUGIN_IO = "ALIASED_PLUGIN_IO_10_03"
