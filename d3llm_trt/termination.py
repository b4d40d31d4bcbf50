"""Signals that end a process, as an exception, so that what is half done is cleaned up first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def tidy_end() -> Iterator[None]:
    """Meanwhile SIGTERM and SIGHUP raise SystemExit with 128 plus their number, the exit code that a shell shows.

    Signals that somebody handles or ignores already stay as they are, and so do all on other threads than the first.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    free = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the cleaning up
    raise SystemExit(128 + number)
