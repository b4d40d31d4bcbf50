"""Builds the CUDA libraries into the package where there is a compiler; everything else is in pyproject.toml.

``D3LLM_TRT_PLUGINS``: ``auto`` (the default: if nvcc is found), ``on`` or ``off``. ``D3LLM_CUDA_ARCHITECTURES``: as for
CMake, by default ``auto``: the GPUs of this machine, or all kinds where it has none. ``TensorRT_ROOT``: where the
headers of TensorRT are. pip shows what is printed here with ``-v`` alone, or where the build fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
TIME = "half a minute for one kind of GPU, a minute or two for all: D3LLM_CUDA_ARCHITECTURES chooses"


def wanted() -> bool:
    """Whether the libraries are built."""
    choice = os.environ.get("D3LLM_TRT_PLUGINS", "auto")
    if choice not in ("auto", "on", "off"):
        sys.exit(f"D3LLM_TRT_PLUGINS is {choice!r}; allowed: auto, on, off")
    return choice == "on" or (choice == "auto" and has_nvcc())


def has_nvcc() -> bool:
    """Whether CMake will find a compiler: see cmake/FindNvcc.cmake."""
    pypi = Path(sysconfig.get_path("purelib")).glob("nvidia/cu[0-9]*/bin/nvcc")
    named = "CUDACXX" in os.environ or shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()
    return bool(named or list(pypi))


def build_libraries() -> None:
    """Configure and build with CMake, into the package."""
    folder = ROOT / "out" / "cmake-wheel"
    options = [
        f"-DD3LLM_PYTHON={sys.executable}",
        f"-DD3LLM_LIBRARY_DIR={ROOT / 'd3llm_trt' / 'plugins' / 'lib'}",
        f"-DD3LLM_CUDA_ARCHITECTURES={os.environ.get('D3LLM_CUDA_ARCHITECTURES') or 'auto'}",
    ]
    build = ["cmake", "--build", folder, "--target", "d3llm_libraries", "--parallel", str(os.cpu_count())]
    print(f"compiling the CUDA libraries takes {TIME}; D3LLM_TRT_PLUGINS=off leaves them out", flush=True)
    try:
        subprocess.run(["cmake", "-S", ROOT, "-B", folder, *options], check=True)
        subprocess.run(build, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the CUDA libraries were not built: {error}; D3LLM_TRT_PLUGINS=off installs without them")


class BuildWithLibraries(build_py):
    """The libraries into the package of the source tree, where a clone finds them; from there they are packaged."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if wanted():
            self.package_data = {**self.package_data, "d3llm_trt.plugins": ["lib/*.so"]}

    def run(self) -> None:
        if wanted():
            build_libraries()
        if not self.editable_mode:  # setuptools packs whatever an earlier build left
            shutil.rmtree(Path(self.build_lib) / "d3llm_trt", ignore_errors=True)
        super().run()


class Package(Distribution):
    """With libraries it is for one platform."""

    def has_ext_modules(self) -> bool:
        return wanted()


class AnyPythonWheel(bdist_wheel):
    """A wheel with libraries is for any Python: they are loaded through ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2])


setup(
    distclass=Package,
    cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": AnyPythonWheel},
    setup_requires=["cmake>=3.22"] if wanted() and shutil.which("cmake") is None else [],
)
