"""The command in a terminal: what a user types and sees there."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.command import COMMAND


@contextmanager
def in_terminal(*args: str) -> Iterator[Terminal]:
    """The command with a terminal of 100 columns."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="100", LINES="40")
        os.execv(sys.executable, [*COMMAND, *args])
    try:
        yield Terminal(pid, descriptor)
    finally:
        os.close(descriptor)


class Terminal:
    """What a user types and sees."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self._pid, self._descriptor, self._seen = pid, descriptor, b""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def read_until(self, part: str, seconds: float = 60) -> str:
        """What is shown up to ``part``; the next call goes on behind it."""
        end = time.monotonic() + seconds
        while part.encode() not in self._seen:
            assert time.monotonic() < end, self._seen[-2000:]
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self._seen += os.read(self._descriptor, 1 << 16)
        seen, _, self._seen = self._seen.partition(part.encode())
        return (seen + part.encode()).decode(errors="replace")

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
