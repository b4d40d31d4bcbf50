"""Kernels' logic compiled for the CPU: one source with the kernels', run by teams of host threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny_models import ROOT

SOURCES = ROOT / "plugins"


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


def run_under_thread_sanitizer(name: str, folder: Path, script: str) -> str:
    """Run Python that finds a library with ThreadSanitizer at ``sys.argv[1]``; returns what it printed.

    The sanitizer must be loaded before Python itself. Skips the test where the compiler has none.
    """
    ask = [compiler(), "-print-file-name=libtsan.so"]
    sanitizer = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(sanitizer).is_absolute():
        pytest.skip("needs the compiler's ThreadSanitizer")
    target = build_host_library(name, folder, "-fsanitize=thread", "-g")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": sanitizer}
    command = [sys.executable, "-c", script, str(target)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout
