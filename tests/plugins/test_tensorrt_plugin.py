"""The plugin library in TensorRT's own registry (that of TensorRT for RTX), and what is said when it does not fit."""

from __future__ import annotations

import subprocess
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import d3llm_trt
from d3llm_trt.build.check import plugin_facts
from d3llm_trt.build.tensorrt.attention import Inputs, PluginAttention
from d3llm_trt.build.tensorrt.lowering import Lowering
from d3llm_trt.config import BuildConfig, TensorRTConfig
from d3llm_trt.errors import BuildError, EngineError, PluginError
from d3llm_trt.manifest import PluginFacts
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.plugins.tensorrt_plugin import PluginLibrary, find_plugin_library, load_plugin
from d3llm_trt.runtime.engines.tensorrt_session import load_checked_plugin
from tests.support.plugin_libraries import plugin_libraries
from tests.support.tensorrt_doubles import give_plugin_layers
from tests.support.tensorrt_uses import Double, record_classes
from tests.support.tensorrt_wheels import FULL, RTX

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 for a registry of TensorRT's")
MODEL = ModelConfig("dream", 32, 128, 32, 2, 4, 2, 32, 1e-5, 1e4, 64, 31, 1, 1)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> PluginLibrary:
    """The compiled library, where the package finds it."""
    monkeypatch.setenv("D3LLM_TRT_LIBRARY", str(plugin_libraries().library.parent))
    return find_plugin_library()


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A builder, whose registry is its own. What is done with it is noted."""
    record_classes(trt, monkeypatch, (*FULL, RTX))
    return trt.Builder(trt.Logger(trt.Logger.ERROR))


def without_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("D3LLM_TRT_LIBRARY", str(folder))


def fields(**values: int) -> Any:
    made = [
        trt.PluginField(name, np.array([value], dtype=np.int32), trt.PluginFieldType.INT32)
        for name, value in values.items()
    ]
    return trt.PluginFieldCollection(made)


def test_tensorrt_loads_the_library_and_creates_the_plugin(library: PluginLibrary, builder: Any) -> None:
    registry = builder.get_plugin_registry()
    creator = load_plugin(registry)
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == ("D3llmBidirectionalAttention", "1", "")
    assert [field.name for field in creator.field_names] == ["num_heads", "num_kv_heads", "head_dim"]
    assert load_plugin(registry) is not None  # already there
    phase = trt.TensorRTPhase.BUILD
    assert creator.create_plugin("a", fields(num_heads=28, num_kv_heads=4, head_dim=128), phase) is not None
    assert creator.create_plugin("a", fields(num_heads=28, num_kv_heads=3, head_dim=128), phase) is None
    assert library.version == d3llm_trt.__version__ and len(library.sha256) == 64


def test_the_plugin_takes_the_fields_that_the_network_gives(
    library: PluginLibrary, builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = give_plugin_layers(trt, monkeypatch)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    qkv, cache = (
        network.add_input("qkv", trt.bfloat16, (-1, 256)),
        network.add_input("c", trt.bfloat16, (4, 2, 2, 64, 32)),
    )
    inputs = Inputs("positions", "cu_window", "kv_lengths", "slots", [(cache,)])
    attention = PluginAttention(Lowering(trt, network), MODEL, inputs, 64)
    assert attention.lower("layers.0.attention", 0, qkv).shape == (-1, 128)
    assert isinstance(layers[0][2], trt.IPluginV3)
    narrow = PluginAttention(Lowering(trt, network), replace(MODEL, head_dim=8), inputs, 64)
    with pytest.raises(
        BuildError, match=r"the plugin D3llmBidirectionalAttention refused the fields of layers.0.attention"
    ):
        narrow.lower("layers.0.attention", 0, qkv)


def test_a_missing_library_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_library(monkeypatch, tmp_path)
    options = TensorRTConfig(attention="plugin")
    settings = BuildConfig("tensorrt", "bfloat16", 1, 64, 256, tensorrt=options).resolved(64, "bfloat16")
    with pytest.raises(
        BuildError, match=r"needs its library: no libd3llm_tensorrt.so in .*make plugins.*or choose native"
    ):
        plugin_facts(settings)
    assert plugin_facts(replace(settings, tensorrt=replace(settings.plan, attention="native"))) is None
    assert plugin_facts(BuildConfig().resolved(64, "bfloat16")) is None
    with pytest.raises(EngineError, match=r"the plan needs plugin library 0.1.0: no libd3llm_tensorrt.so"):
        load_checked_plugin(None, PluginFacts("0.1.0", "0" * 64))


def test_a_library_that_does_not_load_or_is_of_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_library(monkeypatch, tmp_path)
    (tmp_path / "libd3llm_tensorrt.so").write_bytes(b"not a library")
    with pytest.raises(PluginError, match=r"libd3llm_tensorrt.so: cannot be loaded"):
        find_plugin_library()
    other = tmp_path / "other"
    other.mkdir()
    (other / "version.c").write_text('const char* d3llm_version(void) { return "9.9.9"; }\n')
    subprocess.run(["cc", "-shared", "-o", other / "libd3llm_tensorrt.so", other / "version.c"], check=True)
    without_library(monkeypatch, other)
    with pytest.raises(PluginError, match=rf"is version 9.9.9, this package {d3llm_trt.__version__}"):
        find_plugin_library()


def test_a_plan_gets_the_library_it_was_built_with(library: PluginLibrary, builder: Any) -> None:
    settings = BuildConfig("tensorrt", "bfloat16", 1, 64, 256, tensorrt=TensorRTConfig(attention="plugin"))
    wanted = plugin_facts(settings.resolved(64, "bfloat16"))
    assert wanted == PluginFacts(library.version, library.sha256)
    registry = builder.get_plugin_registry()
    with pytest.raises(EngineError, match=r"needs plugin library 0.0.9, and .* is .*; build the engine again"):
        load_checked_plugin(registry, replace(wanted, version="0.0.9"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_checked_plugin(registry, wanted)
    with pytest.warns(UserWarning, match="is another build of the plugin library than the plan's"):
        load_checked_plugin(registry, replace(wanted, sha256="0" * 64))
    assert registry.get_creator("D3llmBidirectionalAttention", "1", "") is not None


def test_a_registry_that_cannot_load_is_said(library: PluginLibrary) -> None:
    registry = Double("IPluginRegistry", {"get_creator": lambda *names: None, "load_library": lambda path: None})
    with pytest.raises(PluginError, match="TensorRT cannot load it"):
        load_plugin(registry)
