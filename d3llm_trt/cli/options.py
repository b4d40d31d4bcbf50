"""Types of command-line arguments, exit codes, and options made from the fields of a dataclass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

SOME_FAILED, BAD_INPUT, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141
PATH = click.Path(path_type=Path)
REVISION = click.option("--revision", metavar="NAME", help="Branch, tag or commit of a model of the Hugging Face Hub.")
NONE = "none"  # on the command line; None itself means that an option was not given
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


class OneOf(click.ParamType[Any]):
    """A number, or one of a few words."""

    def __init__(self, kind: type[int] | type[float], *words: str) -> None:
        self._kind, self._words = kind, words
        number = "an integer" if kind is int else "a number"
        self._allowed = f"{number}, {' or '.join(words)}" if len(words) > 1 else f"{number} or {words[0]}"
        self.name = "|".join(("INTEGER" if kind is int else "NUMBER", *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The word, or the number."""
        if not isinstance(value, str):
            return value
        if value.lower() in self._words:
            return value.lower()
        try:
            return self._kind(value)
        except ValueError:
            self.fail(f"{value!r} is not {self._allowed}", param, ctx)


class Option(NamedTuple):
    """The option that sets a field: its type, its help, how its default is shown if that is not its value."""

    kind: Any
    help: str
    default: str | None = None
    multiple: bool = False


def options_for(table: Mapping[str, Option], defaults: object) -> Callable[[Command], Command]:
    """A decorator that adds the options of ``table``, each named like its field of the dataclass ``defaults``.

    An option that is not given is None, so that it can be told from one that is; see :func:`given`.
    """

    def decorate(command: Command) -> Command:
        for name, option in reversed(list(table.items())):
            command = _option(name, option, getattr(defaults, name))(command)
        return command

    return decorate


def _option(name: str, option: Option, default: object) -> Callable[[Command], Command]:
    flag = name.replace("_", "-")
    shown = f"{option.help}  [default: {_shown(default) if option.default is None else option.default}]"
    if option.kind is bool:
        return click.option(f"--{flag}/--no-{flag}", default=None, show_default=False, help=shown)
    form: dict[str, Any] = {"default": None, "show_default": False, "multiple": option.multiple}
    if isinstance(option.kind, OneOf):
        form["metavar"] = option.kind.name
    return click.option(f"--{flag}", type=option.kind, help=shown, **form)


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return NONE if default is None else str(default)


def given(table: Mapping[str, Option], options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``table`` that were named on the command line, and their values."""
    values = {name: options.get(name) for name in table}
    return {name: None if value == NONE else value for name, value in values.items() if value not in (None, ())}
