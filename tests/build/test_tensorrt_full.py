"""What only full TensorRT can do: on the objects of TensorRT for RTX, and on doubles of what that lacks (L1).

Every use is checked against the bindings of full TensorRT, see ``tests/support/tensorrt_uses.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from d3llm_trt.build.calibration import generated_canvases
from d3llm_trt.build.quantize import fp8_weights
from d3llm_trt.build.tensorrt.compile import (
    _load_timing_cache,
    _save_timing_cache,
    _set_options,
    compile_plan,
    make_builder,
    make_messages,
)
from d3llm_trt.build.tensorrt.network import BuiltNetwork, build_network
from d3llm_trt.config import BuildConfig, PlanConfig, TensorRTConfig
from d3llm_trt.errors import BuildError
from d3llm_trt.model.config import ModelConfig
from tests.support.tensorrt_api import Use
from tests.support.tensorrt_doubles import give_creator, give_plugin_layers
from tests.support.tensorrt_uses import NOTED, Double, RecordedModule, add_method, record_classes
from tests.support.tensorrt_wheels import FULL

real = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
TRT = RecordedModule(real, FULL)
MODEL = ModelConfig("dream", 32, 32, 32, 2, 4, 2, 8, 1e-5, 1e4, 64, 31, 1, 1)


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done with real objects is noted, and checked against the bindings of full TensorRT."""
    record_classes(real, monkeypatch, FULL)


@pytest.fixture
def config() -> Iterator[Any]:
    """A builder configuration. Its builder must live as long."""
    builder, _ = make_builder(TRT)
    yield builder.create_builder_config()


def test_every_option_reaches_the_builder(config: Any) -> None:
    options = TensorRTConfig(
        attention="plugin",
        optimization_level=5,
        workspace_gib=1.5,
        version_compatible=True,
        hardware_compatible=True,
        weight_streaming=True,
        strip_weights=True,
    ).resolved("tensorrt", 64)
    _set_options(TRT, config, options)
    assert config.builder_optimization_level == 5 and config.profiling_verbosity == real.ProfilingVerbosity.DETAILED
    assert config.get_memory_pool_limit(real.MemoryPoolType.WORKSPACE) == 3 << 29
    flags = {name for name, flag in real.BuilderFlag.__members__.items() if config.get_flag(flag)}
    assert flags == {"VERSION_COMPATIBLE", "WEIGHT_STREAMING", "STRIP_PLAN", "REFIT_INDIVIDUAL"}
    assert config.get_preview_feature(real.PreviewFeature.ALIASED_PLUGIN_IO_10_03)
    # TensorRT for RTX takes the level and forgets it.
    level = Use("set", "IBuilderConfig", "hardware_compatibility_level", ("HardwareCompatibilityLevel",))
    assert {level, Use("member", "HardwareCompatibilityLevel", "AMPERE_PLUS")} <= NOTED.keys()


def test_the_timing_cache_is_kept_between_builds(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "timing"
    _save_timing_cache(_load_timing_cache(config, str(path)), str(path))
    kept = path.read_bytes()
    assert len(kept) > 100
    given: list[bytes] = []
    fresh = Double(
        "IBuilderConfig",
        {
            "create_timing_cache": lambda data: given.append(data) or Double("ITimingCache", fits=FULL),
            "set_timing_cache": lambda cache, ignore_mismatch: ignore_mismatch,
        },
        fits=FULL,
    )
    with pytest.raises(BuildError, match="not one of this TensorRT; delete it or name another"):
        _load_timing_cache(fresh, str(path))
    assert given == [kept]
    assert _load_timing_cache(config, None) is None
    with pytest.raises(BuildError, match="its folder cannot be written to"):
        _load_timing_cache(config, str(tmp_path / "none" / "timing"))


def packed_network(model: ModelConfig, quantization: str | None = None) -> tuple[Any, BuiltNetwork, PlanConfig]:
    """The network with our plugin, on TensorRT for RTX's layers but for the plugin's own. The builder comes first."""
    weights = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in model.tensor_shapes().items()}
    asked = BuildConfig("tensorrt", "bfloat16", 4, 64, 128, quantization).resolved(64, "bfloat16")
    builder, _ = make_builder(TRT)
    if quantization is not None:
        weights = fp8_weights(model, weights, generated_canvases(model))
    return builder, build_network(TRT, builder, model, weights, asked), asked.plan


def test_the_plugin_gets_its_fields_and_inputs_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, asked = give_plugin_layers(real, monkeypatch), give_creator(real, monkeypatch)
    _, built, _ = packed_network(MODEL)
    fields = {"num_heads": [4], "num_kv_heads": [2], "head_dim": [8]}
    build = real.TensorRTPhase.BUILD
    assert asked == [(f"layers.{layer}.attention", fields, build) for layer in range(MODEL.num_layers)]
    for layer, (given, shapes, _) in enumerate(layers):
        names = [f"kv_cache.{layer}", "positions", "cu_window", "kv_lengths", "slots"]
        assert [tensor.name for tensor in given[1:6]] == names and shapes == []
        assert [tuple(tensor.shape) for tensor in given] == [
            (-1, 64), (4, 2, 2, 64, 8), (-1,), (-1,), (-1,), (-1,), (64, 4), (64, 4)
        ]  # fmt: skip
    network = built.lowering.network
    outputs = [network.get_output(number).name for number in range(network.num_outputs)]
    assert outputs == ["logits", "kv_cache.0.updated", "kv_cache.1.updated"]


def test_a_packed_network_is_compiled_into_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    give_plugin_layers(real, monkeypatch)
    give_creator(real, monkeypatch)
    add_method(real.Builder, "build_serialized_network_to_stream", written, monkeypatch, FULL)
    builder, built, options = packed_network(MODEL)
    asked = replace(options, timing_cache=str(tmp_path / "timing"), strip_weights=True)
    facts = compile_plan(TRT, builder, make_messages(TRT), built, asked, tmp_path / "plan")
    assert (tmp_path / "plan").read_bytes() == b"a plan" and facts.size == 6
    assert (tmp_path / "timing").exists()


def written(builder: Any, network: Any, config: Any, writer: Any) -> bool:
    """Writes what stands for a plan of every profile."""
    assert config.num_optimization_profiles == 1 and config.progress_monitor is not None
    return bool(writer.write(b"a plan"))


def test_a_plugin_library_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("D3LLM_TRT_LIBRARY", str(tmp_path))
    with pytest.raises(BuildError, match=r"attention is 'plugin', which needs its library: no libd3llm_tensorrt.so"):
        packed_network(MODEL)
