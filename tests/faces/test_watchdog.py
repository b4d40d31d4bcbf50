"""The watchdog of Triton's backend alone, over processes that stand for the server and the backend."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from d3llm_trt.serving.triton import watchdog
from d3llm_trt.serving.triton.watchdog import Watchdog

SLEEP = ["sleep", "60"]
# Holds the write end of the watchdog's pipe too, as a child that the backend forked would.
FORKS = [sys.executable, "-c", "import os, time; os.fork(); time.sleep(60)"]


@contextmanager
def watched(log: int, backend_command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A server and a backend with a watchdog that ends the server."""
    goodbye, kept = os.pipe()
    server = subprocess.Popen(SLEEP)
    backend = subprocess.Popen(backend_command, pass_fds=[kept], start_new_session=True)
    handles = [os.pidfd_open(process.pid) for process in (backend, server)]
    command = [sys.executable, "-S", watchdog.__file__, *map(str, handles), "d3llm", "1"]
    guard = subprocess.Popen(command, stdin=goodbye, stdout=subprocess.PIPE, stderr=log, pass_fds=handles)
    for descriptor in (goodbye, kept, *handles):
        os.close(descriptor)
    try:
        assert guard.stdout is not None and guard.stdout.read(1) == watchdog.READY
        yield server, backend
    finally:
        os.killpg(backend.pid, signal.SIGKILL)
        for process in (server, backend, guard):
            process.kill()
            process.wait()
        assert guard.stdout is not None
        guard.stdout.close()


@pytest.mark.parametrize("command", [SLEEP, FORKS], ids=["alone", "with a forked child"])
def test_a_dead_backend_ends_the_server(command: list[str]) -> None:
    with watched(subprocess.DEVNULL, command) as (server, backend):
        time.sleep(0.3)
        backend.kill()
        assert server.wait(10) == -signal.SIGTERM


def test_a_log_that_nobody_reads_holds_nothing_up() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    with watched(writing, SLEEP) as (server, backend):
        backend.kill()
        assert server.wait(10) == -signal.SIGTERM
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(("owner", "name"), [(os, "pidfd_open"), (signal, "pidfd_send_signal")])
def test_a_python_without_handles_of_processes_is_refused(
    owner: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, name)
    with pytest.raises(OSError, match="lacks pidfd_open"):
        Watchdog("d3llm_0", True)
