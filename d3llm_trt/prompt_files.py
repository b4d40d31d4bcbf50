"""Prompts from arguments, standard input and files, one at a time: a bad one is an entry with an error.

Everywhere the same holds. Blank lines of a file are skipped, and a prompt that is blank is an error of its own. ``-``
is standard input where it is an argument or the name of a file; inside a file it is that text.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from d3llm_trt.errors import ConfigError, D3llmError, RequestError
from d3llm_trt.lookalikes import other_content, unreadable
from d3llm_trt.prompts import KEYS, Prompt, as_prompt, prompt_list
from d3llm_trt.settings import require, shortened
from d3llm_trt.strict_json import MAX_BYTES, parse_value

STDIN = "-"
FORMATS = ("txt", "jsonl", "json")
SUFFIXES = {"": "txt", ".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
LONGEST = 64 << 20  # bytes of a line
MAX_DIGITS = 1000  # of a number that is somebody's id
NO_PROMPT = "give PROMPT, --file, or pipe text into standard input"
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Entry:
    """One prompt as it was given.

    Args:
        where: what messages call it: "prompt 2", "questions.jsonl:7".
        sha256: of what was given, by which a changed file is recognised.
        prompt: in one of its forms; None after an error.
        others: the keys of its object beside the prompt.
        error: why it cannot be asked.
    """

    where: str
    sha256: str
    prompt: Prompt | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    error: D3llmError | None = None


def read_entries(texts: Sequence[str], file: Path | None, form: str | None, stdin: BinaryIO | None) -> Iterator[Entry]:
    """All prompts in order: arguments (``-`` reads all of ``stdin`` as one), then those of ``file``, read as needed.

    Without either, ``stdin`` is the prompt, unless it is a terminal. Raises ConfigError where nothing is given, and
    on a file that cannot be read or is of no known ``form``.
    """
    if not texts and file is None:
        if stdin is None or stdin.isatty():
            raise ConfigError(f"no prompt is given; {NO_PROMPT}")
        texts = [STDIN]
    if [*texts, str(file)].count(STDIN) > 1:
        raise ConfigError("'-' is given twice; standard input can be read once")
    listed = (_argument(f"prompt {number}", text, stdin) for number, text in enumerate(texts, start=1))
    if file is None:
        return listed
    entries = file_entries(file, form, stdin)
    return chain(listed, [next(entries)], entries)  # what is wrong with the file is raised now


def format_of(path: Path, form: str | None = None) -> str:
    """How a file of prompts is read: as ``form`` says, or its suffix. Raises ConfigError on an unknown suffix."""
    if form is not None:
        return form
    suffix, known = path.suffix.lower(), [suffix for suffix in SUFFIXES if suffix]
    allowed = f"{', '.join(known)} or none for text; rename it, or say how it is read with --format"
    require(suffix in SUFFIXES, f"suffix of the prompt file {path}", path.suffix, allowed)
    return SUFFIXES[suffix]


def read_prompt_file(path: Path) -> list[Prompt]:
    """The prompts of a file, all of them good. Raises ConfigError naming the file and the first thing that is wrong."""
    return [_good_prompt(entry) for entry in file_entries(path)]


def _good_prompt(entry: Entry) -> Prompt:
    if entry.prompt is None:
        raise ConfigError(f"{entry.where}: {entry.error}") from entry.error
    return entry.prompt


def file_entries(path: Path, form: str | None = None, stdin: BinaryIO | None = None) -> Iterator[Entry]:
    """The prompts of a file: a line each of ``txt`` and ``jsonl``, an item each of a ``json`` list.

    Raises ConfigError if the file cannot be read, or if nothing in it is a prompt.
    """
    form, name, bad = format_of(path, form), _name(path), list[Entry]()
    with _opened(path, stdin) as file:
        entries = _items(file, name) if form == "json" else _lines(file, name, form)
        for entry in entries:
            bad.append(entry)
            if entry.error is None:
                yield from chain(bad, entries)
                return
    if not bad:
        raise ConfigError(f"{name}: holds no prompt; write one prompt per line")
    raise refusal(bad)


def refusal(bad: Sequence[Entry]) -> ConfigError:
    """What to say of prompts of which all are bad: what is wrong with the first one."""
    others = f" (none of the {len(bad)} prompts can be asked)" if len(bad) > 1 else ""
    return ConfigError(f"{bad[0].where}: {bad[0].error}{others}")


def count_lines(path: Path) -> int | None:
    """How many lines of a regular file are not blank; None for any other file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _name(path: Path) -> str:
    return "standard input" if str(path) == STDIN else f"prompt file {path}"


@contextmanager
def _opened(path: Path, stdin: BinaryIO | None) -> Iterator[BinaryIO]:
    if str(path) == STDIN:
        if stdin is None:
            raise ConfigError("standard input is closed; name a file")
        yield stdin
        return
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"prompt file {path}: {unreadable(path, error, 'correct its name')}") from error


def _argument(where: str, text: str, stdin: BinaryIO | None) -> Entry:
    if text != STDIN:
        return _text_entry(where, text)
    data = b"" if stdin is None else stdin.read()
    data = data.removeprefix(codecs.BOM_UTF8).removesuffix(b"\n").removesuffix(b"\r")
    if not data.strip():
        return Entry(where, _digest(""), error=RequestError(f"standard input is empty; {NO_PROMPT}"))
    try:
        return _text_entry(where, _decoded(data))
    except RequestError as error:
        return Entry(where, _digest(repr(data)), error=error)


def _lines(file: BinaryIO, name: str, form: str) -> Iterator[Entry]:
    make, where = _text_entry if form == "txt" else _object_entry, name.removeprefix("prompt file ")
    for number, line in enumerate(iter(partial(file.readline, LONGEST), b""), start=1):
        if len(line) >= LONGEST:
            raise ConfigError(f"{name}: line {number} has {LONGEST} bytes or more; give a text file")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            _refuse_other_content(line, name, form)
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = _decoded(line)
        except RequestError as error:
            yield Entry(f"{where}:{number}", _digest(repr(line)), error=error)
            continue
        if text.strip():
            yield make(f"{where}:{number}", text)


def _items(file: BinaryIO, name: str) -> Iterator[Entry]:
    data = file.read(MAX_BYTES).removeprefix(codecs.BOM_UTF8)
    if file.read(1):
        raise ConfigError(f"{name}: more than {MAX_BYTES} bytes; write one prompt per line of a .jsonl file")
    _refuse_other_content(data, name, "json")
    try:
        value = _parsed(_decoded(data))
        if not isinstance(value, (list, Mapping)):
            raise RequestError(f"holds {shortened(value)}; allowed: a list of prompts")
    except RequestError as error:
        more = "; one object per line is a .jsonl file" if "Extra data" in str(error) else ""
        raise ConfigError(f"{name}: {error}{more}") from error
    for number, item in enumerate(prompt_list(value), start=1):
        yield _item_entry(f"prompt {number} of {name.removeprefix('prompt file ')}", item)


def _refuse_other_content(start: bytes, name: str, form: str) -> None:
    """Raise ConfigError if a file begins like one of another kind."""
    if form == "txt" and not start.startswith(_WIDE_MARKS):
        return
    if start.strip() and (other := other_content(start, form.upper())) is not None:
        raise ConfigError(f"{name}: {other.cause}; {other.fix or 'give a file of prompts'}")


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"not UTF-8 at byte {error.start}; convert it to UTF-8") from error


def _text_entry(where: str, text: str) -> Entry:
    return _entry(where, text, lambda: (text, {}))


def _object_entry(where: str, text: str) -> Entry:
    try:
        value = _parsed(text)
    except RequestError as error:
        return Entry(where, _digest(text), error=error)
    return _entry(where, value, lambda: _of_object(value))


def _item_entry(where: str, item: object) -> Entry:
    return _entry(where, item, lambda: (as_prompt(item), {}) if isinstance(item, (str, list)) else _of_object(item))


def _entry(where: str, value: object, read: Callable[[], tuple[Prompt, dict[str, Any]]]) -> Entry:
    """The entry of a value from which ``read`` takes the prompt and what is beside it."""
    try:
        # One level deeper than the value, as it will be written into its answer.
        sha256 = _digest([[value]])
    except RecursionError:
        return Entry(where, _digest(where), error=RequestError("prompt is nested too deeply; allowed: fewer levels"))
    try:
        prompt, others = read()
        if isinstance(prompt, str):
            _check_text(prompt)
        return Entry(where, sha256, prompt, others)
    except RequestError as error:
        return Entry(where, sha256, error=error, others=_kept(value))


def _kept(value: object) -> dict[str, Any]:
    """What an answer keeps of a bad object: all but the prompt."""
    return {key: item for key, item in value.items() if key not in KEYS} if isinstance(value, Mapping) else {}


def _of_object(value: object) -> tuple[Prompt, dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise RequestError(f"prompt is {shortened(value)}; allowed: an object with one key of {', '.join(KEYS)}")
    named = {key: value[key] for key in KEYS if key in value}
    if len(named) != 1:
        allowed = f"one key of {', '.join(KEYS)}, beside others of your own"
        raise RequestError(f"prompt has the keys {shortened(sorted(value))}; allowed: {allowed}")
    return as_prompt(named), _kept(value)


def _check_text(text: str) -> None:
    require(bool(text.strip()), "prompt", text, "a text that is not blank", RequestError)
    if "\0" in text:
        raise RequestError("prompt holds a NUL character; allowed: text; convert it to UTF-8 if it is UTF-16")


def _parsed(text: str) -> Any:
    try:
        return parse_value(text, max_digits=MAX_DIGITS)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not valid JSON: {error}") from error


def _digest(value: object) -> str:
    """SHA-256 of a value that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
