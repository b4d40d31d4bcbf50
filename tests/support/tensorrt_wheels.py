"""The real bindings of several TensorRTs: where `make bindings` puts them, and how a process of its own imports them.

Full TensorRT's bindings come without its libraries. Stubs of a few lines take their place, whose functions give null;
so everything that Python declares is there, and every object that TensorRT itself would make is not.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.tensorrt_api import Api
from tests.support.tiny_models import ROOT

FOLDER = ROOT / "out" / "tensorrt-bindings"
VERSIONS = {"10.15.1": "10.15.1.29", "11.0": "11.0.0.114", "11.4": "11.4.0.106"}
FULL = tuple(VERSIONS)
LEAN, RTX = "lean", "rtx"
ALL = (*FULL, LEAN, RTX)
# Modules as users import them, and the bindings that they come from.
MODULES = {**dict.fromkeys(FULL, "tensorrt"), LEAN: "tensorrt_lean", RTX: "tensorrt_rtx"}
STUBS = {
    "nvinfer": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}
_TEMPORARY = tempfile.TemporaryDirectory(prefix="tensorrt-stubs-")


def installed(name: str) -> bool:
    """Whether the bindings are there; TensorRT for RTX is one of the pinned test requirements."""
    return name == RTX or (_wheels(name) / ".ready").exists()


def require(name: str) -> None:
    """Skip the test without the bindings."""
    if not installed(name):
        pytest.skip(f"no bindings of TensorRT {name}; run `make bindings`, which fetches them")


def _wheels(name: str) -> Path:
    return FOLDER / VERSIONS.get(name, name)


@functools.cache
def _front(name: str) -> Path:
    """A folder with the module that users import, and stubs of the libraries that are not on PyPI."""
    folder = Path(_TEMPORARY.name) / name
    module = folder / MODULES[name] / "__init__.py"
    module.parent.mkdir(parents=True)
    bindings = f"{MODULES[name]}_bindings"
    module.write_text(f"from {bindings} import *\nfrom {bindings} import __version__\n")
    for library, functions in STUBS.items() if name in FULL else ():
        source = "".join(f"void* {function}(void) {{ return 0; }}\n" for function in functions)
        target = folder / f"lib{library}.so.{VERSIONS[name].split('.')[0]}"
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(target)]
        subprocess.run(command, input=source, text=True, check=True)
    return folder


def environment(name: str) -> dict[str, str]:
    """The environment of a process that imports one TensorRT by its own name, and our package."""
    if name == RTX:
        return {**os.environ, "PYTHONPATH": str(ROOT)}
    front = _front(name)
    path = os.pathsep.join(map(str, (front, _wheels(name), ROOT)))
    return {**os.environ, "PYTHONPATH": path, "LD_LIBRARY_PATH": str(front)}


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python with one TensorRT, in a process of its own, so that a crash is a result."""
    command = [sys.executable, "-X", "faulthandler", *arguments]
    return subprocess.run(command, env=environment(name), cwd=ROOT, capture_output=True, text=True, timeout=120)


@functools.cache
def api(name: str) -> Api:
    """The API of one TensorRT. Skips the test without its bindings."""
    require(name)
    done = run(name, ROOT / "tests" / "support" / "tensorrt_description.py", MODULES[name])
    assert done.returncode == 0, done.stderr
    return Api(json.loads(done.stdout))
