"""Every use that build and runtime make of TensorRT is right in 10.15.1, 11.0, 11.4 and TensorRT for RTX.

Uses are recorded where networks and plans are made by TensorRT for RTX, and on doubles of what needs a GPU. They are
checked against what the real bindings say of themselves (``make bindings``): class, method, names and number of
arguments, types, members of enumerations, and what is returned.
"""

from __future__ import annotations

import ast
import functools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from d3llm_trt import BuildConfig, build_engine
from d3llm_trt.build.calibration import generated_canvases
from d3llm_trt.build.quantize import fp8_weights
from d3llm_trt.build.tensorrt.compile import compile_plan, make_builder, make_messages
from d3llm_trt.build.tensorrt.network import build_network
from d3llm_trt.config import TensorRTConfig
from d3llm_trt.manifest import Manifest
from d3llm_trt.runtime.engines.tensorrt_session import TensorRTSession, open_plan, plan_layers, refit
from tests.build.test_tensorrt_full import MODEL, packed_network, written
from tests.support import tensorrt_wheels
from tests.support.golden_cases import GOLDEN
from tests.support.tensorrt_api import Use
from tests.support.tensorrt_doubles import PlanDouble, cache_double, give_creator, give_plugin_layers, refitting
from tests.support.tensorrt_uses import NOTED, Double, RecordedModule, add_method, record_classes
from tests.support.tensorrt_wheels import ALL, FULL, RTX
from tests.support.tiny_models import ROOT

real = pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
NATIVE = ("11.0", "11.4", RTX)
CPU = torch.device("cpu")
WEIGHTS = {name: torch.zeros(shape) for name, shape in MODEL.tensor_shapes().items()}


# What is recorded


def native_networks(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Native attention with both masks, and FP8."""
    record_classes(real, patch, NATIVE)
    for dtype, mask, quantization in (("bfloat16", "lengths", "fp8"), ("float32", "explicit", None)):
        options = TensorRTConfig(attention_mask=mask)
        asked = BuildConfig("tensorrt-rtx", dtype, 2, 64, quantization=quantization, tensorrt=options)
        settings = asked.resolved(64, dtype)
        trt = RecordedModule(real, NATIVE)
        builder, _ = make_builder(trt)
        kind = getattr(torch, dtype)
        weights = {name: tensor.to(kind) for name, tensor in WEIGHTS.items()}
        if quantization is not None:
            weights = fp8_weights(MODEL, weights, generated_canvases(MODEL))
        build_network(trt, builder, MODEL, weights, settings)


def packed_plan(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The plugin's network with every option, up to the builder's last call."""
    record_classes(real, patch, FULL)
    give_plugin_layers(real, patch)
    give_creator(real, patch)
    add_method(real.Builder, "build_serialized_network_to_stream", written, patch, FULL)
    trt = RecordedModule(real, FULL)
    packed_network(MODEL, quantization="fp8")
    builder, built, options = packed_network(MODEL)
    every = dict.fromkeys(("version_compatible", "hardware_compatible", "weight_streaming", "strip_weights"), True)
    asked = replace(options, workspace_gib=1.0, timing_cache=str(folder / "timing"), **every)
    compile_plan(trt, builder, make_builder(trt)[1], built, asked, folder / "plan")


def real_build(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A whole build by TensorRT for RTX, from a checkpoint to a plan for two kinds of GPU."""
    record_classes(real, patch, (RTX,))
    patch.setitem(sys.modules, "tensorrt_rtx", RecordedModule(real, (RTX,)))
    options = TensorRTConfig(compute_capabilities=("8.9", "12.0"), token_buckets=(32,))
    asked = BuildConfig("tensorrt-rtx", "bfloat16", 1, 32, tensorrt=options)
    build_engine(GOLDEN / "llada_tiny", folder / "engine", asked)


def plans_at_run_time(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A plan is opened with every option, run, refitted and inspected; all but the last also by the lean runtime."""
    record_classes(real, patch, ALL)
    plan = PlanDouble(real, [{"x": ((1,), (4,), (4,))}], ["y"])
    inspector = Double("EngineInspector", {"get_engine_information": lambda form: "{}"}, fits=(*FULL, RTX))
    engine = plan.engine(
        ALL,
        create_engine_inspector=lambda: inspector,
        get_weight_streaming_automatic_budget=lambda: 1,
    )
    add_method(real.Runtime, "deserialize_cuda_engine", lambda runtime, data: engine, patch, ALL)
    patch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    patch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1))
    options = TensorRTConfig(attention="native", version_compatible=True, weight_streaming=True)
    asked = BuildConfig("tensorrt", tensorrt=options).resolved(64, "bfloat16")
    manifest = Manifest(MODEL, asked, real.__version__, "", "", {})
    (folder / "rank0.engine").write_bytes(b"a plan")
    trt = RecordedModule(real, ALL)
    opened = open_plan(trt, folder, manifest, CPU)
    TensorRTSession(trt, opened, CPU).run({"x": torch.zeros(2), "y": torch.zeros(2)})
    plan_layers(trt, opened)
    save_file({"a": torch.ones(2)}, folder / "w.safetensors")
    refit(refitting(real, ["a"], {}, ALL), opened, folder / "w.safetensors", make_messages(trt))


def plans_of_rtx(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """A session with a cache of kernels."""
    record_classes(real, patch, (RTX,))
    plan = PlanDouble(real, [{"x": ((1,), (4,), (4,))}], ["y"])
    (folder / "cache").write_bytes(b"kept")
    session = TensorRTSession(RecordedModule(real, (RTX,)), plan.rtx_engine(cache_double([])), CPU, folder / "cache")
    session.close()


SCENARIOS = (native_networks, packed_plan, real_build, plans_at_run_time, plans_of_rtx)


@functools.cache
def uses() -> dict[Use, frozenset[str]]:
    """Every use, and the TensorRTs in which it must be right."""
    for scenario in SCENARIOS:
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            scenario(patch, Path(folder))
    return dict(NOTED)


# What is checked


@pytest.mark.parametrize("name", ALL)
def test_every_use_is_right(name: str) -> None:
    api = tensorrt_wheels.api(name)
    made = [use for use, names in uses().items() if name in names]
    assert len(made) > 40
    assert [text for use in made if (text := api.objection(use))] == []


@pytest.mark.parametrize("name", ALL)
def test_every_use_that_is_made_wrong_is_found(name: str) -> None:
    """The names, arguments and results of every use are changed, one after the other."""
    api = tensorrt_wheels.api(name)
    wrong = [changed for use, names in uses().items() if name in names for changed in changes(use)]
    assert len(wrong) > 150
    assert [str(use) for use in wrong if api.objection(use) is None] == []


# Calls whose last argument may be left out, at least in one of the versions.
HAVE_DEFAULTS = {
    "Builder.create_network",
    "Dims.__init__",
    "ICudaEngine.create_execution_context",
    "INetworkDefinition.add_dequantize",
    "INetworkDefinition.add_quantize",
    "IPluginRegistry.get_creator",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "IRuntimeConfig.set_runtime_cache",
    "Logger.__init__",
    "Permutation.__init__",
    "PluginField.__init__",
    "PluginFieldCollection.__init__",
}


def changes(use: Use) -> Iterator[Use]:
    """What ``use`` might be by mistake."""
    yield replace(use, name=f"{use.name}s")
    if use.owner:
        yield replace(use, owner=f"{use.owner}s")
    if use.kind in ("call", "override"):
        yield replace(use, positional=(*use.positional, *["int"] * 8))
    if use.kind == "call":
        yield replace(use, keywords=(*use.keywords, ("no_such", "int")))
        if use.positional and f"{use.owner}.{use.name}" not in HAVE_DEFAULTS:
            yield replace(use, positional=use.positional[:-1])
    if use.kind in ("call", "set"):
        for index in range(len(use.positional)):
            yield replace(use, positional=(*use.positional[:index], "IMadeUp", *use.positional[index + 1 :]))
    if use.result is not None and use.name != "get_creator":  # of which pybind11 says that it gives some object
        yield replace(use, result="IMadeUp")


SOURCES = (
    *sorted((ROOT / "build" / "tensorrt").glob("*.py")),
    ROOT / "runtime" / "engines" / "tensorrt_session.py",
    ROOT / "plugins" / "tensorrt_plugin.py",
    ROOT / "d3llm_trt" / "tensorrt_objects.py",
)
# Attributes of our own objects and Python's that some class of TensorRT's has, too.
NOT_TENSORRTS = {"append", "attention", "clear", "constant", "logger", "num_layers", "plugin", "pop", "type", "update"}


def test_no_use_in_the_sources_is_missed() -> None:
    """Whatever attribute the sources name that some class of TensorRT's has was recorded."""
    apis = [tensorrt_wheels.api(name) for name in ("11.4", RTX)]
    named = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    recorded = {use.name for use in uses()}
    theirs = {name for name in named if any(api.has(name) for api in apis)}
    assert len(theirs) > 60
    assert theirs - recorded - NOT_TENSORRTS == set()
