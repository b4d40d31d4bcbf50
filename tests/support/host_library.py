"""Kernels' logic compiled for the CPU: one source with the kernels', run by teams of host threads."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "plugins"


def compiler() -> str:
    """The C++ compiler; skips the test where there is none."""
    path = shutil.which("g++")
    if path is None:
        pytest.skip("needs g++")
    return path


def build_host_library(name: str, folder: Path, *flags: str) -> Path:
    """Compile ``kernels/{name}.cpp`` into ``folder``; float operations are rounded one by one, as on a GPU."""
    target = folder / f"libd3llm_{name}.so"
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
    includes = [f"-I{SOURCES}", f"-I{SOURCES / 'c_api'}"]
    source = SOURCES / "kernels" / f"{name}.cpp"
    subprocess.run([compiler(), *options, *flags, *includes, str(source), "-o", str(target)], check=True)
    return target
