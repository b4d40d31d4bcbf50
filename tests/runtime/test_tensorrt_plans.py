"""Plans that are wrong, damaged or of another TensorRT, opened by real runtimes: one clear error each and no crash.

TensorRT for RTX reads a plan's head without a GPU. The lean runtime of TensorRT 11.4 needs a driver to read anything.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from d3llm_trt import BuildConfig, build_engine
from d3llm_trt.config import TensorRTConfig
from d3llm_trt.errors import EngineError
from d3llm_trt.manifest import PLAN_FILE, Manifest, load_manifest, verify_files, write_manifest
from d3llm_trt.model.config import ModelConfig
from tests.support import tensorrt_wheels
from tests.support.golden_cases import GOLDEN
from tests.support.plugin_libraries import plugin_libraries
from tests.support.tensorrt_wheels import LEAN, RTX
from tests.support.tiny_models import ROOT

WORDS = {
    "empty": "empty memory buffer",
    "text": "incompatible serialization version",
    "of another TensorRT": "incompatible serialization version",
    "a few bytes": "bufferSize >= minBufferSize",
    "half": "plan.header.size == blobSize",
    "one byte more": "plan.header.size == blobSize",
    "no offsets": "Serialization assertion",
}
LEAN_VERSION = "11.4.0.106"
MODEL = ModelConfig("llada", 32, 16, 32, 2, 2, 2, 8, 1e-5, 1e4, 64, 31, 1, 1)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A small engine of TensorRT for RTX."""
    pytest.importorskip("tensorrt_rtx")
    return rtx_engine(tmp_path)


def rtx_engine(tmp_path: Path) -> Path:
    options = TensorRTConfig(compute_capabilities=("8.9",), token_buckets=(64,))
    asked = BuildConfig("tensorrt-rtx", "bfloat16", 1, 64, tensorrt=options)
    return build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", asked)


def said_of_plans(name: str, engine: Path) -> dict[str, str]:
    """What opening each wrong plan says."""
    done = tensorrt_wheels.run(name, ROOT / "tests" / "support" / "wrong_plans.py", engine, name)
    assert done.returncode == 0, done.stdout + done.stderr
    said = (line.removeprefix("said: ") for line in done.stdout.splitlines() if line.startswith("said: "))
    return dict(map(json.loads, said))


def test_a_damaged_plan_is_told_with_tensorrts_own_words(engine: Path) -> None:
    version = load_manifest(engine).backend_version
    said = said_of_plans(RTX, engine)
    newer = f"was built with TensorRT 99.0, and {version} is installed; install tensorrt-rtx-cu13 99.0, or build"
    assert newer in said.pop("of version 99.0")
    whole = said.pop("as it is")
    assert torch.cuda.is_available() or "cudaError 35" in whole
    for name, words in WORDS.items():
        start = f"{engine / PLAN_FILE}: TensorRT {version} cannot load it: "
        assert said[name].startswith(start) and words in said[name] and "\n" not in said[name]
        assert said[name].endswith("; build the engine again with `d3llm-trt build` on this machine")
    assert said.keys() == WORDS.keys()


def test_a_truncated_plan_does_not_reach_tensorrt(engine: Path) -> None:
    plan = engine / PLAN_FILE
    size = plan.stat().st_size
    plan.write_bytes(plan.read_bytes()[:1000])
    with pytest.raises(EngineError, match=f"damaged engine: rank0.engine has 1000 bytes, expected {size}; build"):
        verify_files(engine, load_manifest(engine))


# The lean runtime


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A directory that says it is a version-compatible engine; its plan is one of TensorRT for RTX, or made up."""
    path = tmp_path / "foreign"
    path.mkdir()
    options = TensorRTConfig(attention="native", version_compatible=True)
    asked = BuildConfig("tensorrt", "bfloat16", 1, 64, tensorrt=options).resolved(64, "bfloat16")
    write_manifest(path, Manifest(MODEL, asked, LEAN_VERSION, "", "", {}, ("8.9",)))
    made_up = b"ptrt" + bytes(range(256)) * 64
    plan = rtx_engine(tmp_path) / PLAN_FILE if find_spec("tensorrt_rtx") else None
    (path / PLAN_FILE).write_bytes(plan.read_bytes() if plan else made_up)
    return path


PLUGIN = """
import numpy as np
from d3llm_trt.plugins.tensorrt_plugin import load_plugin
from d3llm_trt.tensorrt_module import load_tensorrt

trt = load_tensorrt("tensorrt", lean=True)

def fields(**values):
    kind = trt.PluginFieldType.INT32
    made = [trt.PluginField(name, np.array([value], dtype=np.int32), kind) for name, value in values.items()]
    return trt.PluginFieldCollection(made)

registry = trt.get_plugin_registry()
before = len(registry.all_creators)
creator = load_plugin(registry)
assert load_plugin(registry).name == creator.name and len(registry.all_creators) == before + 1
print(trt.__version__, creator.name, creator.plugin_version, *(field.name for field in creator.field_names))
good, bad = (dict(num_heads=28, num_kv_heads=kv_heads, head_dim=128) for kv_heads in (4, 3))
for phase in (trt.TensorRTPhase.RUNTIME, trt.TensorRTPhase.BUILD):
    plugin = creator.create_plugin("layers.0.attention", fields(**good), phase)
    assert plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME) is not None
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    print(core.plugin_name, core.plugin_version)
print(creator.create_plugin("layers.0.attention", fields(**bad), trt.TensorRTPhase.RUNTIME))
"""


def test_the_lean_runtime_makes_our_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt_wheels.require(LEAN)
    monkeypatch.setenv("D3LLM_TRT_LIBRARY", str(plugin_libraries().library.parent))
    done = tensorrt_wheels.run(LEAN, "-c", PLUGIN)
    assert done.returncode == 0, done.stdout + done.stderr
    name = "D3llmBidirectionalAttention 1"
    told = f"{LEAN_VERSION} {name} num_heads num_kv_heads head_dim"
    assert [line for line in done.stdout.splitlines() if "[TRT]" not in line] == [told, name, name, "None"]
    assert "num_kv_heads is 3; allowed: divisors of num_heads, which is 28" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a driver")
def test_the_lean_runtime_without_a_driver_is_an_error_and_no_crash(foreign: Path) -> None:
    """What TensorRT gives then crashes where it is used, and where it is freed."""
    tensorrt_wheels.require(LEAN)
    said = said_of_plans(LEAN, foreign)
    assert "install tensorrt-cu13 99.0" in said.pop("of version 99.0")
    for text in said.values():
        assert text.startswith(f"TensorRT {LEAN_VERSION} gave no runtime: ") and "\n" not in text
        assert "CUDA initialization failure with error: 35" in text and "update the NVIDIA driver" in text


@pytest.mark.gpu
def test_the_lean_runtime_refuses_plans_that_it_cannot_run(foreign: Path) -> None:
    tensorrt_wheels.require(LEAN)
    said = said_of_plans(LEAN, foreign)
    assert "install tensorrt-cu13 99.0" in said.pop("of version 99.0")
    for text in said.values():
        start = f"{foreign / PLAN_FILE}: TensorRT {LEAN_VERSION} cannot load it: "
        assert text.startswith(start) and "no message" not in text and "\n" not in text


WITHOUT_THE_FULL_ONE = """
from d3llm_trt.errors import EngineError
from d3llm_trt.tensorrt_module import load_tensorrt

print(load_tensorrt("tensorrt", lean=True).__name__)
try:
    load_tensorrt("tensorrt")
except EngineError as error:
    print(error)
"""


def test_the_lean_runtime_takes_the_place_of_a_full_one_where_it_may() -> None:
    tensorrt_wheels.require(LEAN)
    done = tensorrt_wheels.run(LEAN, "-c", WITHOUT_THE_FULL_ONE)
    assert done.stdout.splitlines() == [
        "tensorrt_lean",
        "backend 'tensorrt' needs tensorrt-cu13 10.15.1 or newer: No module named 'tensorrt'; "
        "pip install 'tensorrt-cu13>=10.15.1'",
    ]
