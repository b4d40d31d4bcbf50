"""Processes that run this package, users that may not write, and file systems that cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "d3llm_trt"]
NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Meanwhile this process may not write where only root may; without effect for ordinary users."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may read, and only its owner may write."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def run_with_mount(mount: str, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run a command where ``mount``, a line of shell, has changed the mounts. Skips where this is not allowed."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare -m")
    script = f'{mount} || exit 99; exec "$@"'
    whole = ["unshare", "-m", "bash", "-c", script, "bash", *map(str, command)]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=120)
    if done.returncode == 99:
        pytest.skip(f"needs {mount}")
    return done
