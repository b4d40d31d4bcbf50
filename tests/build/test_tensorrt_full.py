"""What only full TensorRT can do, against recording doubles: it does not run on our machines (evidence level L1)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d3llm_trt.build.tensorrt.attention import Inputs, PluginAttention
from d3llm_trt.build.tensorrt.compile import _load_timing_cache, _save_timing_cache, _set_options
from d3llm_trt.build.tensorrt.lowering import Lowering
from d3llm_trt.config import TensorRTConfig
from d3llm_trt.errors import BuildError
from d3llm_trt.model.config import ModelConfig

MODEL = ModelConfig("dream", 32, 32, 32, 2, 4, 2, 8, 1e-5, 1e4, 64, 31, 1, 1)


class Names:
    """Any attribute is its own name, as an enumeration's members are for a double."""

    def __getattr__(self, name: str) -> str:
        return name


class ConfigDouble:
    """Records what is set on a builder configuration."""

    def __init__(self) -> None:
        object.__setattr__(self, "calls", [])

    def __setattr__(self, name: str, value: Any) -> None:
        self.calls.append((name, value))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments)) or True


def test_every_option_reaches_the_builder() -> None:
    module = SimpleNamespace(
        ProfilingVerbosity=Names(),
        MemoryPoolType=Names(),
        BuilderFlag=Names(),
        PreviewFeature=Names(),
        HardwareCompatibilityLevel=Names(),
    )
    config = ConfigDouble()
    options = TensorRTConfig(
        attention="plugin",
        optimization_level=5,
        workspace_gib=1.5,
        version_compatible=True,
        hardware_compatible=True,
        weight_streaming=True,
        strip_weights=True,
    ).resolved("tensorrt", 64)
    _set_options(module, config, options)
    assert config.calls == [
        ("builder_optimization_level", 5),
        ("clear_flag", "TF32"),
        ("profiling_verbosity", "DETAILED"),
        ("set_memory_pool_limit", "WORKSPACE", 3 << 29),
        ("set_flag", "VERSION_COMPATIBLE"),
        ("set_flag", "WEIGHT_STREAMING"),
        ("set_flag", "STRIP_PLAN"),
        ("set_flag", "REFIT_INDIVIDUAL"),
        ("set_preview_feature", "ALIASED_PLUGIN_IO_10_03", True),
        ("hardware_compatibility_level", "AMPERE_PLUS"),
    ]


def test_the_timing_cache_is_kept_between_builds(tmp_path: Path) -> None:
    path = tmp_path / "timing"

    def config(accepted: bool = True) -> Any:
        return SimpleNamespace(
            create_timing_cache=lambda data: SimpleNamespace(serialize=lambda: data + b"+"),
            set_timing_cache=lambda cache, ignore_mismatch: accepted and not ignore_mismatch,
        )

    for kept in (b"+", b"++"):
        _save_timing_cache(_load_timing_cache(config(), str(path)), str(path))
        assert path.read_bytes() == kept
    with pytest.raises(BuildError, match="not one of this TensorRT; delete it or name another"):
        _load_timing_cache(config(accepted=False), str(path))
    assert _load_timing_cache(config(), None) is None
    with pytest.raises(BuildError, match="its folder cannot be written to"):
        _load_timing_cache(config(), str(tmp_path / "none" / "timing"))


class NetworkDouble:
    """Constants, and plugin layers with two outputs."""

    def __init__(self, creator: Any) -> None:
        self.plugins: list[tuple[list[Any], list[Any], Any]] = []
        registry = SimpleNamespace(
            get_creator=lambda name, version, namespace: (
                creator if (name, version, namespace) == ("D3llmBidirectionalAttention", "1", "") else None
            )
        )
        self.builder = SimpleNamespace(get_plugin_registry=lambda: registry)

    def add_constant(self, dims: tuple[int, ...], weights: Any) -> Any:
        return SimpleNamespace(get_output=lambda number: ("constant", dims))

    def add_plugin_v3(self, inputs: list[Any], shapes: list[Any], plugin: Any) -> Any:
        self.plugins.append((inputs, shapes, plugin))
        return SimpleNamespace(get_output=lambda number: f"output {number}")


class Creator:
    """Creates plugins that are their own name and fields."""

    def create_plugin(self, name: str, fields: Any, phase: str) -> Any:
        return name, {field: values.tolist() for field, values, _ in fields}, phase


def plugin_module() -> Any:
    return SimpleNamespace(
        Weights=lambda dtype, address, count: (dtype, count),
        float32="float32",
        PluginFieldCollection=list,
        PluginField=lambda name, values, kind: (name, values, kind),
        PluginFieldType=Names(),
        TensorRTPhase=Names(),
    )


def test_the_plugin_gets_its_fields_and_inputs_in_order() -> None:
    network = NetworkDouble(Creator())
    inputs = Inputs("positions", "cu_window", "kv_lengths", "slots", [("cache.0",), ("cache.1",)])
    attention = PluginAttention(Lowering(plugin_module(), network), MODEL, inputs, 64)
    assert attention.lower("layers.1.attention", 1, "qkv") == "output 0"
    ((given, shapes, plugin),) = network.plugins
    tables = [("constant", (64, 4)), ("constant", (64, 4))]
    assert given == ["qkv", "cache.1", "positions", "cu_window", "kv_lengths", "slots", *tables] and shapes == []
    assert plugin == ("layers.1.attention", {"num_heads": [4], "num_kv_heads": [2], "head_dim": [8]}, "BUILD")
    assert attention.updated == [("output 1",)]


def test_a_plugin_library_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("D3LLM_TRT_LIBRARY", str(tmp_path))
    inputs = Inputs("positions", "cu_window", "kv_lengths", "slots", [])
    with pytest.raises(BuildError, match=r"attention is 'plugin', which needs its library: no libd3llm_tensorrt.so"):
        PluginAttention(Lowering(plugin_module(), NetworkDouble(None)), MODEL, inputs, 64)
