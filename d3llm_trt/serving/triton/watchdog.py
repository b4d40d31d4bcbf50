"""If the Triton server or its Python backend's process dies, the other one is ended too.

Triton never answers the requests that a dead backend had in work, so their clients would wait for ever; and a backend
at work whose server was killed can stay for ever, with its engine on the GPU. ``Watchdog`` runs this file as a small
process of its own, which outlives the one that it watches; it imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

READY, GOODBYE = b"r", b"g"
SETTLE_SECONDS = 0.2  # for a server that is ending anyway, whose backend ended first
SERVER_SECONDS = 3.0  # for the server to end what other models have in work
BACKEND_SECONDS = 1.0  # for a backend to see that its server is gone
START_SECONDS = 20.0
DISMISS_SECONDS = 5.0
SERVER_PROGRAM = "tritonserver"


class Watchdog:
    """Watches the process that makes it and the server, until it is dismissed.

    Args:
        name: what this process serves, for the server's log.
        ends_server: whether the server is ended when this process dies. A program that has Triton inside is not.

    Raises OSError where it cannot be had: no Python to run it, a Python or kernel (before 5.3) without handles of
    processes, or a parent that is not Triton.
    """

    def __init__(self, name: str, ends_server: bool) -> None:
        if not sys.executable or not (hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")):
            raise OSError("this Python does not know its program, or lacks pidfd_open or pidfd_send_signal")
        server = _server()
        self.ends_server = ends_server and _program(server) == SERVER_PROGRAM
        with contextlib.ExitStack() as stack:
            handles = [_open(os.getpid(), stack), _open(server, stack)]
            # No -m and no site-packages, so that it starts at once. Ctrl-C does not reach a session of its own.
            script = [sys.executable, "-S", str(Path(__file__).resolve())]
            self._process = subprocess.Popen(
                [*script, *map(str, handles), name, str(int(self.ends_server))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=handles, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        with self._process.stdout as answer:
            if not (_wait(answer.fileno(), seconds=START_SECONDS) and answer.read(1) == READY):
                self._process.kill()
                raise OSError(f"{sys.executable} did not start it; exit code {self._process.wait()}")

    def dismiss(self) -> None:
        """End the watch before an end that is not a crash. May be called again."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(GOODBYE)
        try:
            self._process.wait(DISMISS_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _server() -> int:
    """The parent's number. Triton names it among the backend's arguments; an orphan's parent is another process."""
    parent = os.getppid()
    if str(parent).encode() not in Path("/proc/self/cmdline").read_bytes().split(b"\0"):
        raise OSError(f"the parent process, {parent}, is not the Triton server")
    return parent


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").readlink().name
    return ""


def _open(pid: int, stack: contextlib.ExitStack) -> int:
    """A handle, which stays that process's even when its number belongs to another one later."""
    handle = os.pidfd_open(pid)
    stack.callback(os.close, handle)
    return handle


def watch(backend: int, server: int, name: str, ends_server: bool) -> None:
    """Wait for a goodbye on standard input, or until one of the two has ended, and then end the other one."""
    goodbye = sys.stdin.fileno()
    for process in (backend, server):
        signal.pidfd_send_signal(process, 0)  # it raises now where it would raise then
    os.write(sys.stdout.fileno(), READY)
    _wait(goodbye, backend, server)
    if _wait(goodbye, seconds=0) and os.read(goodbye, 1):
        return
    if _wait(server, seconds=SETTLE_SECONDS):
        if not _wait(backend, seconds=BACKEND_SECONDS):
            _end(backend, signal.SIGKILL)
    elif ends_server:
        # Beside it: a log that nobody reads any more takes no line.
        text = f"{name}: the backend's process died; ending the server, since requests in work would never be answered"
        threading.Thread(target=_say, args=(text,), daemon=True).start()
        _end(server, signal.SIGTERM)
        if not _wait(server, seconds=SERVER_SECONDS):
            _end(server, signal.SIGKILL)


def _wait(*handles: int, seconds: float | None = None) -> bool:
    """Whether one of them can be read in time; a process's handle can once it has ended."""
    poll = select.poll()
    for handle in handles:
        poll.register(handle, select.POLLIN)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))


def _end(process: int, kind: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, kind)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "1")
