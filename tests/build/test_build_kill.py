"""Builds killed at seeded points: afterwards the target is what it was before, or complete, or not there."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from d3llm_trt.build.builder import build_engine
from d3llm_trt.config import BuildConfig
from d3llm_trt.manifest import load_manifest, verify_files
from tests.support.checkpoints import make_checkpoint

POINTS = 20
OLD, NEW = 2, 5
WATCHED = ("builder.py", "engine_dir.py", "workspaces.py", "weights_file.py", "manifest.py")


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that start with torch imported, so that dozens of them take seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["d3llm_trt.build.builder", "d3llm_trt.build.tokenizer"])
    return context


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("kill") / "checkpoint", "dream", hidden=32, layers=2)


def build(checkpoint: Path, target: Path, kill_at: int | None, lines: Any) -> None:
    """Build in this process and kill it at the ``kill_at``-th executed line of the modules that write."""

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if Path(frame.f_code.co_filename).name not in WATCHED:
            return None
        if event == "line":
            lines.value += 1
            if lines.value == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    build_engine(checkpoint, target, BuildConfig(max_batch_size=NEW), overwrite=True)
    sys.settrace(None)


def state(target: Path) -> int | None:
    """Batch size of the sound engine at ``target``; None if nothing is there."""
    if not os.path.lexists(target):
        return None
    manifest = load_manifest(target)
    verify_files(target, manifest)
    return manifest.build_config.max_batch_size


def run(context: Any, checkpoint: Path, target: Path, kill_at: int | None = None, delay: float | None = None) -> int:
    """Build in another process, killed at a line or after a delay. Returns how many lines it executed."""
    lines = context.RawValue("i", 0)
    worker = context.Process(target=build, args=(checkpoint, target, kill_at, lines))
    worker.start()
    if delay is not None:
        time.sleep(delay)
        worker.kill()
    worker.join(60)
    expected = {-signal.SIGKILL, 0} if delay is not None else {-signal.SIGKILL if kill_at else 0}
    assert worker.exitcode in expected
    return int(lines.value)


@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "overwrite"])
def test_killed_at_any_line(context: Any, checkpoint: Path, tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "engine"
    before = OLD if existing else None

    def start() -> None:
        if existing:
            build_engine(checkpoint, target, BuildConfig(max_batch_size=OLD), overwrite=True)
        elif target.exists():
            for file in target.iterdir():
                file.unlink()
            target.rmdir()

    start()
    total = run(context, checkpoint, target)
    rng = random.Random(f"kill{existing}")
    # Half of the points are near the end, where the engine is synced, moved into place and the old one removed.
    points = rng.sample(range(1, total + 1), POINTS // 2) + rng.sample(range(total - 60, total + 1), POINTS // 2)
    seen = set()
    for point in sorted(points):
        start()
        run(context, checkpoint, target, kill_at=point)
        seen.add(state(target))
    assert seen == {before, NEW}
    start()
    run(context, checkpoint, target)
    assert state(target) == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


@pytest.mark.parametrize("existing", [False, True], ids=["fresh", "overwrite"])
def test_killed_at_any_time(context: Any, checkpoint: Path, tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "engine"
    rng = random.Random(f"delay{existing}")
    before = OLD if existing else None
    if existing:
        build_engine(checkpoint, target, BuildConfig(max_batch_size=OLD))
    for _ in range(POINTS // 4):
        run(context, checkpoint, target, delay=rng.uniform(0.0, 0.2))
        assert state(target) in (before, NEW)
        before = state(target)
