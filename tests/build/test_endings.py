"""How builds end that are told to: nothing is left, and what dead ones left is removed by whoever comes next."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from d3llm_trt import LLM, build_engine
from d3llm_trt.files import replace_file
from d3llm_trt.manifest import load_manifest, verify_files
from d3llm_trt.serving.triton.repository import write_repository
from tests.support.checkpoints import make_checkpoint
from tests.support.processes import COMMAND
from tests.support.tiny_models import CHECKPOINTS


@pytest.fixture(scope="module")
def context() -> Any:
    """Processes that start with torch imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["d3llm_trt.build.builder", "d3llm_trt.build.tokenizer", "d3llm_trt.runtime.llm"])
    return context


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("endings") / "checkpoint", "dream", hidden=32, layers=2)


def build(checkpoint: Path, target: Path, number: int, cached: bool, handler: Any) -> None:
    """A build that gets a signal while it writes its third tensor; ``cached`` means through LLM."""

    def progress(stage: str, done: int, total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), number)

    if handler is not None:
        signal.signal(number, handler)
    if cached:
        os.environ["D3LLM_TRT_CACHE"] = str(target)
        LLM(checkpoint, device="cpu", progress=progress).close()
    else:
        build_engine(checkpoint, target, overwrite=True, progress=progress)


def ignore(number: int, frame: FrameType | None) -> None:
    """A handler that goes on."""


def meet(
    context: Any, checkpoint: Path, target: Path, number: int, *, cached: bool = False, handler: Any = None
) -> int:
    """Run such a build in another process. Returns its exit code."""
    worker = context.Process(target=build, args=(checkpoint, target, number, cached, handler))
    worker.start()
    worker.join(60)
    return int(worker.exitcode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".lock", ".source"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("cached", [False, True])
def test_a_signal_leaves_nothing_and_shows_in_the_exit_code(
    context: Any, checkpoint: Path, tmp_path: Path, number: int, cached: bool
) -> None:
    target = tmp_path / "deep" / "er" / "engine"
    assert meet(context, checkpoint, target, number, cached=cached) == 128 + number
    assert names(target if cached else tmp_path) == []


def test_an_engine_that_is_overwritten_stays_after_a_signal(context: Any, checkpoint: Path, tmp_path: Path) -> None:
    before = load_manifest(build_engine(checkpoint, tmp_path / "engine"))
    assert meet(context, checkpoint, tmp_path / "engine", signal.SIGTERM) == 143
    assert names(tmp_path) == ["engine"] and load_manifest(tmp_path / "engine") == before
    verify_files(tmp_path / "engine", before)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, ignore])
def test_signals_that_somebody_handles_are_left_alone(
    context: Any, checkpoint: Path, tmp_path: Path, handler: Any
) -> None:
    assert meet(context, checkpoint, tmp_path / "engine", signal.SIGTERM, handler=handler) == 0
    assert names(tmp_path) == ["engine"]


def test_a_build_on_another_thread_works_and_afterwards_signals_are_as_before(checkpoint: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=build_engine, args=(checkpoint, tmp_path / "engine"))
    thread.start()
    thread.join()
    build_engine(checkpoint, tmp_path / "other")
    assert names(tmp_path) == ["engine", "other"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_the_command_ends_alike(tmp_path: Path, number: int, code: int) -> None:
    # Calibration takes seconds, after the first file is there.
    args = ["build", CHECKPOINTS["dream"], "-o", tmp_path / "new" / "engine", "--quantization", "fp8"]
    process = subprocess.Popen([*COMMAND, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(tmp_path, "new/.*/unquantized.safetensors")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code and out == "" and "Traceback" not in err, err
    assert names(tmp_path) == []


def test_what_dead_builds_left_is_removed_whatever_they_built(context: Any, checkpoint: Path, tmp_path: Path) -> None:
    assert meet(context, checkpoint, tmp_path / "engine", signal.SIGKILL) == -signal.SIGKILL
    (left,) = names(tmp_path)
    assert left.startswith(".")
    build_engine(checkpoint, tmp_path / "other")
    assert names(tmp_path) == ["other"]


def test_what_a_dead_build_left_in_the_cache_is_removed(
    context: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    assert meet(context, checkpoint, cache, signal.SIGKILL, cached=True) == -signal.SIGKILL
    (left,) = names(cache)
    assert left.startswith(".")
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(cache))
    LLM(make_checkpoint(tmp_path / "other", "llada", hidden=32, layers=1), device="cpu").close()
    (entry,) = names(cache)
    assert not entry.startswith(".")


def test_what_a_dead_build_left_in_a_repository_is_removed(context: Any, checkpoint: Path, tmp_path: Path) -> None:
    engine, repository = build_engine(checkpoint, tmp_path / "engine"), tmp_path / "repository"
    assert meet(context, checkpoint, repository / "engine", signal.SIGKILL) == -signal.SIGKILL
    assert len(names(repository)) == 1
    write_repository(engine, repository)
    assert names(repository) == ["d3llm"]


def test_a_build_that_lives_is_left_alone(context: Any, checkpoint: Path, tmp_path: Path) -> None:
    worker = context.Process(target=build, args=(checkpoint, tmp_path / "slow", signal.SIGSTOP, False, None))
    worker.start()
    wait_for(tmp_path, ".*/rank0.safetensors")
    build_engine(checkpoint, tmp_path / "engine")
    assert len(names(tmp_path)) == 2
    deadline = time.monotonic() + 60
    while worker.is_alive() and time.monotonic() < deadline:
        os.kill(worker.pid, signal.SIGCONT)
        worker.join(0.05)
    assert worker.exitcode == 0
    assert names(tmp_path) == ["engine", "slow"]
    verify_files(tmp_path / "slow", load_manifest(tmp_path / "slow"))


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_old_halves_of_a_file_are_removed_and_new_ones_left(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    old, new, foreign = (tmp_path / name for name in (".sizes.json.1.tmp", ".sizes.json.2.tmp", ".sizes.json.mine.tmp"))
    for other in (old, new, foreign):
        other.touch()
    for other in (old, foreign):
        os.utime(other, (1, 1))
    replace_file(path, b"{}")
    assert names(tmp_path) == [".sizes.json.2.tmp", ".sizes.json.mine.tmp", "sizes.json"]
