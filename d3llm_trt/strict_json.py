"""JSON objects read strictly: UTF-8, no duplicate keys, no NaN, no numbers that a machine word cannot hold."""

from __future__ import annotations

import json
import math
import stat
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from d3llm_trt.lookalikes import other_content, unreadable

MAX_BYTES = 256 << 20
MAX_DIGITS = 18


def read_object(path: Path, error: type[Exception], fix: str, *, max_digits: int = MAX_DIGITS) -> dict[str, Any]:
    """The JSON object in the regular file ``path``. Raises ``error`` naming the file, what is wrong and ``fix``."""
    return parse_object(read_bytes(path, error, fix), str(path), error, fix, max_digits=max_digits)


def read_bytes(path: Path, error: type[Exception], fix: str) -> bytes:
    """The content of the regular file ``path``, which may be a link to one."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise error(f"{path}: not a regular file; {fix}")
        if facts.st_size > MAX_BYTES:
            raise error(f"{path}: {facts.st_size} bytes; allowed: at most {MAX_BYTES}; {fix}")
        return path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: {unreadable(path, reason, fix)}") from reason


def parse_object(
    data: bytes, source: str, error: type[Exception], fix: str, *, max_digits: int = MAX_DIGITS
) -> dict[str, Any]:
    """The JSON object in ``data``. Raises ``error`` naming ``source``, what is wrong and ``fix``, or a better one."""
    if (other := other_content(data, "JSON")) is not None:
        raise error(f"{source}: {other.cause}; {other.fix or fix}")
    try:
        value = parse_value(data.decode("utf-8"), max_digits=max_digits)
        # Escaped lone surrogates survive parsing and fail only where they are printed or used as a file name.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as reason:
        raise error(f"{source}: not UTF-8 text: {reason}; {fix}") from reason
    except ValueError as reason:
        raise error(f"{source}: not valid JSON: {reason}; {fix}") from reason
    except RecursionError as reason:
        raise error(f"{source}: not valid JSON: nested too deeply; {fix}") from reason
    if not isinstance(value, dict):
        raise error(f"{source}: holds a JSON {type(value).__name__}; expected an object; {fix}")
    return value


def parse_value(text: str, *, max_digits: int = MAX_DIGITS) -> Any:
    """The JSON value in ``text``. Raises ValueError, also on what JSON readers do not agree on, or RecursionError."""
    return json.loads(
        text,
        object_pairs_hook=_object,
        parse_constant=_no_constant,
        parse_int=partial(_integer, max_digits),
        parse_float=_number,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key!r}")
        result[key] = value
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _integer(max_digits: int, text: str) -> int:
    if len(text.lstrip("-")) > max_digits:
        raise ValueError(f"the number {text[:24]}... has more than {max_digits} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:24]} is too large")
    return value
