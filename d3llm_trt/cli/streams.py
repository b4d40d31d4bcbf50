"""Standard output and error as the commands write to them, whatever characters their encoding can hold."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import click


def escape_what_does_not_fit() -> None:
    """Characters that standard output cannot encode are written as escapes, as standard error does from the start."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def write_line(text: str) -> None:
    """``text`` and a line break on standard output, in one piece and at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def json_line(value: Any, encoding: str | None = None) -> str:
    """``value`` as one line of JSON: readable, or with escapes where ``encoding``, by default UTF-8, has no other."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def write_json(value: Any) -> None:
    """One line of JSON on standard output."""
    write_line(json_line(value, sys.stdout.encoding))


def write_error(text: str) -> None:
    """One line on standard error that begins with "error: "."""
    click.echo("error: " + " ".join(text.split()), err=True)


def is_terminal(stream: Any) -> bool:
    """Whether somebody watches ``stream``; False for one that is closed."""
    return stream is not None and stream.isatty()
