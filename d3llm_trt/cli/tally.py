"""How far a run over many prompts is: counted, shown while it runs, and told at its end."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field

import click

from d3llm_trt.cli.options import BAD_INPUT, SOME_FAILED
from d3llm_trt.cli.streams import is_terminal
from d3llm_trt.errors import ConfigError, D3llmError, RequestError

REDRAWN, FIRST_LOGGED, MOST_APART = 0.1, 1.0, 60.0  # seconds
ERASE_LINE = "\r\x1b[K"


@dataclass
class Tally:
    """Counts of a run. ``before`` are prompts that an earlier run has answered, ``refused`` those that were bad input.

    Tokens, and the seconds since ``started``, are of this run alone.
    """

    answers: int = 0
    errors: int = 0
    refused: int = 0
    tokens: int = 0
    before: int = 0
    started: float = field(default_factory=time.perf_counter)

    def count(self, error: D3llmError | None, tokens: int = 0) -> None:
        """One more prompt is done."""
        self.tokens += tokens
        self.answers += error is None
        self.errors += error is not None
        self.refused += isinstance(error, (RequestError, ConfigError))

    def count_before(self, error: str | None) -> None:
        """One more prompt was done by an earlier run."""
        self.before += 1
        self.answers += error is None
        self.errors += error is not None

    @property
    def done(self) -> int:
        """Prompts that were answered or have failed, in earlier runs too."""
        return self.answers + self.errors

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, BAD_INPUT if all prompts were refused, else SOME_FAILED."""
        if not self.errors:
            return 0
        return BAD_INPUT if self.refused == self.done else SOME_FAILED

    def line(self) -> str:
        """The counts in words."""
        earlier = f" ({self.before} of them before)" if self.before else ""
        seconds = time.perf_counter() - self.started
        return (
            f"{_counted(self.answers, 'answer')}, {_counted(self.errors, 'error')}{earlier}, "
            f"{_counted(self.tokens, 'token')}, {seconds:.1f} s"
        )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Progress:
    """The tally on standard error while a run goes on: a line that is redrawn on a terminal, else one now and then.

    Args:
        tally: what is shown.
        total: prompts in all; None if that is not known.
        shown: False for a run so short that nothing is said.

    As a context it tells the tally at the end, whatever the end is.
    """

    def __init__(self, tally: Tally, total: int | None, shown: bool) -> None:
        self._tally, self._total, self._shown = tally, total, shown
        self._terminal = shown and is_terminal(sys.stderr)
        self._pause = REDRAWN if self._terminal else FIRST_LOGGED
        self._next = time.perf_counter() + self._pause

    def show(self) -> None:
        """Show the tally if that is due: off a terminal after 1, 2, 4, ... seconds, then every minute."""
        now = time.perf_counter()
        if not self._shown or now < self._next:
            return
        text = self._text()
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            click.echo(ERASE_LINE + text[:width], err=True, nl=False)
        else:
            click.echo(text, err=True)
            self._pause = min(2 * self._pause, MOST_APART)
        self._next = now + self._pause

    def __enter__(self) -> Progress:
        self._tally.started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()
        if self._shown:
            click.echo(self._tally.line(), err=True)

    def hide(self) -> None:
        """Make room on a terminal for what is printed next."""
        if self._terminal:
            click.echo(ERASE_LINE, err=True, nl=False)

    def _text(self) -> str:
        of = "" if self._total is None else f" of {self._total}"
        return f"{self._tally.done}{of} prompts: {self._tally.line()}"
