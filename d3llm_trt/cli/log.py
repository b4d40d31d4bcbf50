"""What the package logs, on standard error while a command runs; nobody else's loggers are touched."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from d3llm_trt.cli.streams import is_terminal
from d3llm_trt.cli.tally import ERASE_LINE

LEVELS = ("debug", "info", "warning", "error")
LOGGER = "d3llm_trt"
# Commands report failed requests themselves, so these loggers' warnings are shown only where they are asked for.
OF_REQUESTS = ("d3llm_trt.runtime.llm", "d3llm_trt.runtime.scheduler")


class _ToStandardError(logging.Handler):
    """One line per record, written to whatever standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is None:
            return
        start = ERASE_LINE if is_terminal(sys.stderr) else ""  # there may be a line of progress
        text = " ".join(self.format(record).splitlines())
        click.echo(f"{start}{record.levelname.lower()}: {text}", err=True)


@contextmanager
def logging_to_standard_error(level: str | None) -> Iterator[None]:
    """Show the package's records of ``level`` and above; by default warnings that no command reports itself."""
    logger, handler = logging.getLogger(LOGGER), _ToStandardError()
    quiet = OF_REQUESTS if level is None else ()
    before = {name: logging.getLogger(name).level for name in (LOGGER, *quiet)}
    logger.setLevel((level or "warning").upper())
    for name in quiet:
        logging.getLogger(name).setLevel(logging.ERROR)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        for name, number in before.items():
            logging.getLogger(name).setLevel(number)
