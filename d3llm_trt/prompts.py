"""Prompts that users give: as arguments, in a file, or on standard input, as text or as chat messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from d3llm_trt.errors import ConfigError
from d3llm_trt.settings import is_integer

STDIN = "-"
JSON_KEYS = ("prompt", "messages", "prompt_token_ids")
Prompt = str | list[dict[str, str]] | dict[str, list[int]]


def read_prompts(texts: Sequence[str], file: Path | None, stdin: BinaryIO | None) -> list[Prompt]:
    """All prompts in order: arguments (``-`` reads all of ``stdin`` as one), then the file's.

    Without either, ``stdin`` is the prompt, unless it is a terminal. Raises ConfigError naming what is wrong.
    """
    if not texts and file is None:
        if stdin is None or stdin.isatty():
            raise ConfigError("no prompt is given; give PROMPT, --file, or pipe text into standard input")
        texts = [STDIN]
    if list(texts).count(STDIN) > 1:
        raise ConfigError("prompt '-' is given twice; standard input can be read once")
    prompts: list[Prompt] = [_read_stdin(stdin) if text == STDIN else text for text in texts]
    if file is not None:
        prompts += read_prompt_file(file)
    return prompts


def as_chat(prompt: Prompt, system: str | None) -> Prompt:
    """Text as a user's message; ``system`` leads unless a system message already does. Token ids stay as they are."""
    if isinstance(prompt, dict):
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system is None or messages[0].get("role") == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _read_stdin(stdin: BinaryIO | None) -> str:
    text = _decode(stdin.read() if stdin else b"", "standard input").removesuffix("\n").removesuffix("\r")
    if not text:
        raise ConfigError("standard input is empty; give PROMPT, --file, or pipe text into standard input")
    return text


def read_prompt_file(path: Path) -> list[Prompt]:
    """One prompt per line that is not blank; lines of a ``.jsonl`` file are objects.

    Raises ConfigError naming the file and what is wrong with it.
    """
    return list(_read_file(path))


def _read_file(path: Path) -> Iterator[Prompt]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"prompt file {path}: cannot be read: {error.strerror}") from error
    lines = _decode(content, f"prompt file {path}").replace("\r\n", "\n").split("\n")
    if not any(line.strip() for line in lines):
        raise ConfigError(f"prompt file {path}: holds no prompt; write one prompt per line")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_line(line, f"{path}:{number}") if path.suffix == ".jsonl" else line


def _decode(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 at byte {error.start}; convert it to UTF-8") from error


def _parse_line(line: str, where: str) -> Prompt:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from error
    allowed = f"an object with one key of {', '.join(JSON_KEYS)}"
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in JSON_KEYS:
        raise ConfigError(f"{where}: is {_shortened(value)}; allowed: {allowed}")
    (key, content), *_ = value.items()
    if not _fits(key, content):
        kind = {"prompt": "a text", "messages": "a list of messages", "prompt_token_ids": "a list of ids"}[key]
        raise ConfigError(f"{where}: {key} is {_shortened(content)}; allowed: {kind}")
    return {key: content} if key == "prompt_token_ids" else content


def _fits(key: str, content: Any) -> bool:
    if key == "prompt":
        return isinstance(content, str)
    if not isinstance(content, list) or not content:
        return False
    return all(isinstance(item, dict) if key == "messages" else is_integer(item) for item in content)


def _shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:59] + "…"
