"""Builders, runtimes and refitters of TensorRT, made so that what goes wrong can be told in TensorRT's own words."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LAST_ERRORS = 3
NO_DRIVER = "cudaError 35"  # none at all, or one that is older than TensorRT's CUDA
NO_CUDA = "CUDA initialization failure"


class Messages:
    """TensorRT's errors, as they come."""

    def __init__(self) -> None:
        self.logger: Any = None
        self.errors: list[str] = []

    def last_errors(self) -> str:
        """The last few different errors in one line. A missing driver is told only where nothing else is wrong."""
        real = [text for text in self.errors if NO_DRIVER not in text] or self.errors
        return " | ".join(dict.fromkeys(real[-LAST_ERRORS:])) or "no message"


def make_messages(trt: Any, printer: Any = None) -> Messages:
    """Messages whose ``logger`` collects errors, and hands everything on to the ILogger ``printer``."""
    messages = Messages()

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                messages.errors.append(message)
            if printer is not None:
                printer.log(severity, message)

    messages.logger = Logger()
    return messages


def make_object(constructor: Any, messages: Messages) -> Any:
    """A Builder, Runtime or Refitter over ``messages.logger``; None where TensorRT makes none, which messages tell."""
    # TensorRT logs while it makes one, under a lock that it also takes to free one: an old one that is collected
    # inside our logger would wait forever.
    gc.collect()
    with _collection_paused():
        try:
            made = constructor(messages.logger)
        except TypeError as error:
            if "nullptr" not in str(error):
                raise
            return None
    if any(NO_CUDA in text for text in messages.errors):
        # TensorRT 11.4 gives an object over nothing then, which crashes where it is used or freed. So it never is.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        return None
    return made


@contextmanager
def _collection_paused() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
