"""The compiled plugin library and its host program for tests: those of `make plugins`, or built once for the tests."""

from __future__ import annotations

import functools
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from d3llm_trt.errors import PluginError
from d3llm_trt.plugins.library import TENSORRT, find

ROOT = Path(__file__).parents[2]
MADE_HOST = ROOT / "out" / "cmake" / "d3llm_plugin_host"
OWN = ROOT / "out" / "cmake-test"


@dataclass(frozen=True)
class Built:
    """Where the plugin library and the host program are."""

    library: Path
    host: Path


@functools.cache
def plugin_libraries() -> Built:
    """Skips the test where there is no CUDA compiler or no headers of TensorRT."""
    try:
        if MADE_HOST.exists():
            return Built(find(TENSORRT), MADE_HOST)
    except PluginError:
        pass  # the host alone is of no use
    if not shutil.which("cmake"):
        pytest.skip("no cmake, so the plugin cannot be built; run `make plugins`")
    OWN.mkdir(parents=True, exist_ok=True)
    with FileLock(OWN / ".lock"):
        _build()
    return Built(OWN / "lib" / TENSORRT, OWN / "d3llm_plugin_host")


def tensorrt85_plugins() -> Path:
    """The library of our plugins for TensorRT 8.5, built beside the host program. Skips the test as above."""
    folder = plugin_libraries().host.parent
    if not shutil.which("cmake"):
        pytest.skip("no cmake on the path, so the plugins for TensorRT 8.5 cannot be built")
    with FileLock(folder / ".tensorrt85.lock"):
        subprocess.run(["cmake", "--build", folder, "--target", "d3llm_tensorrt85"], check=True, capture_output=True)
    return folder / "libd3llm_tensorrt85.so"


def _build() -> None:
    architectures = "native" if torch.cuda.is_available() else "80"
    options = [f"-DD3LLM_LIBRARY_DIR={OWN / 'lib'}", f"-DD3LLM_CUDA_ARCHITECTURES={architectures}"]
    made = subprocess.run(["cmake", "-S", ROOT, "-B", OWN, *options], capture_output=True, text=True)
    if "no nvcc" in made.stderr:
        pytest.skip("no CUDA compiler, so the plugin cannot be built; run `make plugins`, which fetches one")
    if "TensorRT headers not found" in made.stdout + made.stderr:
        pytest.skip("no headers of TensorRT, so the plugin cannot be built; run `make plugins`, which fetches them")
    assert made.returncode == 0, made.stderr
    subprocess.run(["cmake", "--build", OWN, "--target", "d3llm_plugin_host", "d3llm_tensorrt"], check=True)
