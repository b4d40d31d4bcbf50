"""What the commands share: exit codes, types of arguments, and options made from the fields of a config class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click

SOME_FAILED, BAD_INPUT, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141
PATH = click.Path(path_type=Path)
REVISION = click.option("--revision", metavar="NAME", help="Branch, tag or commit of a model of the Hugging Face Hub.")
PLAIN_TYPES = {"str": str, "int": int, "float": float, "bool": bool}
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

    def __init__(self, kind: type, *words: str) -> None:
        self._kind, self._words = kind, words
        number = "an integer" if kind is int else "a number"
        self._allowed = f"{number}, {' or '.join(words)}" if len(words) > 1 else f"{number} or {words[0]}"
        self.name = self.metavar = "|".join(("INTEGER" if kind is int else "NUMBER", *words))

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


def config_options(config: Any, prefix: str = "", unset: str = "", **forms: Any) -> Callable[[Command], Command]:
    """An option for each field of a dataclass, named like it, with what the docstring of the class says of it.

    An option that is not given is None, see :func:`chosen`; ``unset`` says what an empty default means. ``forms`` are
    arguments of :func:`click.option` by field; a field of no plain type has an option only with a form.
    """
    entries = re.findall(r"^    (\w+): (.+(?:\n        .+)*)", inspect.getdoc(config) or "", re.MULTILINE)
    texts = {name: " ".join(text.split()).replace("``", "") for name, text in entries}

    def add_options(command: Command) -> Command:
        for item in reversed(fields(config)):
            kind = _kind(str(item.type))
            if kind is not None or item.name in forms:
                text = texts.get(item.name, "")
                text = f"{prefix}{text[:1].upper()}{text[1:]}{_shown_default(item.default, unset)}"
                form = {"type": kind, "is_flag": kind is bool, "help": text, **forms.get(item.name, {})}
                form["metavar"] = getattr(form["type"], "metavar", None)
                command = click.option(_flag(item), default=None, show_default=False, **form)(command)
        return command

    return add_options


def chosen(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, of those that :func:`config_options` makes."""
    values = {item.name: options.get(item.name) for item in fields(config)}
    return {name: None if value == NONE else value for name, value in values.items() if value not in (None, ())}


def _kind(annotation: str) -> Any:
    """The type of an option for a field, None if that cannot be told; a number that may be None may be ``none``."""
    first, *others = annotation.split(" | ")
    kind = PLAIN_TYPES.get(first)
    return OneOf(kind, NONE) if kind in (int, float) and others == ["None"] else kind


def _flag(item: Field[Any]) -> str:
    name = item.name.replace("_", "-")
    return f"--{name}/--no-{name}" if item.default is True else f"--{name}"


def _shown_default(default: object, unset: str) -> str:
    shown = unset if default in (None, ()) else "on" if default is True else "" if default is False else default
    return "" if shown == "" else f"  [default: {shown}]"
