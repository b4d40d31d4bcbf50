"""Which TensorRT is taken, and what is said where it is missing, too old or gives nothing: on the real bindings."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from d3llm_trt.errors import EngineError
from d3llm_trt.tensorrt_module import PACKAGES, load_tensorrt, version_numbers
from tests.support import tensorrt_wheels
from tests.support.golden_cases import GOLDEN
from tests.support.tensorrt_wheels import FULL, VERSIONS
from tests.support.tiny_models import ROOT

OBJECTS = """
import io, sys, torch
from d3llm_trt.build.builder import check_build
from d3llm_trt.build.tensorrt import compile as compiling
from d3llm_trt.build.tensorrt.lowering import Lowering
from d3llm_trt.config import BuildConfig, TensorRTConfig
from d3llm_trt.errors import D3llmError
from d3llm_trt.runtime.engines.tensorrt_session import make_runtime
from d3llm_trt.tensorrt_module import load_tensorrt

def attempt(function, *arguments):
    try:
        function(*arguments)
        print("nothing is wrong")
    except D3llmError as error:
        print(type(error).__name__, error, sep=": ")

trt = load_tensorrt("tensorrt")
for name in ("float32", "float16", "bfloat16", "float8_e4m3fn", "int32", "int64"):
    assert trt.Weights(Lowering(trt, None).dtype(getattr(torch, name)), 1, 3).size == 3
writer, monitor = compiling._writer(trt, io.BytesIO()), compiling._monitor(trt, None)
monitor.phase_start("phase", None, 1)
assert writer.write(b"plan") == 4 and monitor.step_complete("phase", 0) and monitor.phase_finish("phase") is None
attempt(compiling.make_builder, trt)
attempt(make_runtime, trt)
native = BuildConfig("tensorrt", tensorrt=TensorRTConfig(attention="native"))
attempt(check_build, *sys.argv[1:], native)
"""
OLD = (
    "EngineError: attention is 'native', which needs TensorRT 11.0 or newer, and 10.15.1.29 is installed; "
    "choose plugin, or pip install 'tensorrt-cu13>=11.0'"
)
NO_GPU = "BuildError: tensorrt builds on the GPU that a plan is for, and there is none; choose tensorrt-rtx or torch"


@pytest.mark.parametrize("name", FULL)
def test_what_is_made_of_real_classes_and_what_is_said(name: str, tmp_path: Path) -> None:
    """Over libraries that give null there is no builder and no runtime, and native attention is too new for one."""
    tensorrt_wheels.require(name)
    done = tensorrt_wheels.run(name, "-c", OBJECTS, GOLDEN / "llada_tiny", tmp_path / "engine")
    assert done.returncode == 0, done.stderr
    version = VERSIONS[name]
    assert done.stdout.splitlines() == [
        f"BuildError: TensorRT {version} gave no builder: no message",
        f"EngineError: TensorRT {version} gave no runtime: no message; update the NVIDIA driver, or install a TensorRT "
        "for its CUDA version",
        OLD if name == "10.15.1" else "nothing is wrong" if torch.cuda.is_available() else NO_GPU,
    ]


def test_an_old_tensorrt_is_named_with_the_one_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    needed = "backend 'tensorrt' needs tensorrt-cu13 10.15.1 or newer, and 8.6.1 is installed; pip install"
    with pytest.raises(EngineError, match=needed):
        load_tensorrt("tensorrt")


def test_the_versions_checked_here_are_those_that_are_asked_for() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest, end = re.search(r"tensorrt-cu13>=([\d.]+),<([\d.]+)", text).groups()
    assert oldest == PACKAGES["tensorrt"].oldest == FULL[0]
    newest = version_numbers(VERSIONS[FULL[-1]])
    assert newest < version_numbers(end) <= (newest[0], newest[1] + 1)
    assert f"tensorrt-rtx-cu13>={PACKAGES['tensorrt-rtx'].oldest}" in text
