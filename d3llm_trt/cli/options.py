"""Types of command-line arguments and exit codes that the commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

SOME_FAILED, BAD_INPUT, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141
PATH = click.Path(path_type=Path)
REVISION = click.option("--revision", metavar="NAME", help="Branch, tag or commit of a model of the Hugging Face Hub.")
Command = TypeVar("Command", bound=Callable[..., Any])


class Several(click.ParamType[tuple[Any, ...]]):
    """Values of one type with commas between them."""

    name = "LIST"

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """A tuple. Fails naming the part that is none."""
        parts = value if isinstance(value, tuple) else str(value).split(",")
        try:
            return tuple(self._kind(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not a list of {self._kind.__name__} with commas between them", param, ctx)
