"""Prompts that users give, in any form and from anywhere, and their token ids."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from d3llm_trt.errors import ConfigError, RequestError
from d3llm_trt.settings import is_integer, shortened

if TYPE_CHECKING:
    from d3llm_trt.tokenizer import Tokenizer

STDIN = "-"
KEYS = ("prompt", "messages", "prompt_token_ids")
FORMS = 'a str, a list of chat messages, {"prompt": "..."}, {"messages": [...]} or {"prompt_token_ids": [...]}'
CHARACTERS_PER_TOKEN = 128  # longer texts cannot fit, and to find that out would take time
Message = Mapping[str, str]
Prompt = str | list[Message] | dict[str, list[int]]


def prompt_list(prompts: object) -> list[object]:
    """The prompts that ``generate`` was given: one in any form, a list of them, or what yields them.

    A list of nothing but chat messages is one chat. Raises RequestError on what is neither.
    """
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    if isinstance(prompts, (bytes, bytearray)) or not isinstance(prompts, Iterable):
        raise RequestError(f"prompts is {shortened(prompts)}; allowed: a prompt, or a list of them: {FORMS}")
    listed = list(prompts)
    if listed and all(isinstance(item, Mapping) and {"role", "content"} & item.keys() for item in listed):
        return [listed]
    return listed


def as_prompt(value: object) -> Prompt:
    """A text, a list of messages, or ``{"prompt_token_ids": [...]}`` from a prompt in any of its forms.

    Raises RequestError on anything else; what messages and ids hold is checked where they are encoded.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _of_mapping(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return list(value)
    raise RequestError(f"prompt is {shortened(value)}; allowed: {FORMS}")


def _of_mapping(value: Mapping[Any, Any]) -> Prompt:
    if {"role", "content"} & value.keys():
        raise RequestError(f"prompt is {shortened(value)}, one chat message; allowed: a list of messages: [[...]]")
    if len(value) != 1 or next(iter(value)) not in KEYS:
        raise RequestError(f"prompt has the keys {sorted(map(str, value))}; allowed: one key of {', '.join(KEYS)}")
    (key, content), *_ = value.items()
    if key == "prompt_token_ids":
        return {key: _integers(content)}
    if key == "prompt" and not isinstance(content, str):
        raise RequestError(f"prompt is {shortened(content)}; allowed: a text")
    if key == "messages" and not (isinstance(content, list) and all(isinstance(item, Mapping) for item in content)):
        raise RequestError(f"messages is {shortened(content)}; allowed: a list of messages")
    prompt: Prompt = content
    return prompt


def _integers(ids: object) -> list[int]:
    """Plain integers of Python from those of any library."""
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
        raise RequestError(f"prompt_token_ids is {shortened(ids)}; allowed: a list of token ids")
    plain = [_as_integer(token_id) for token_id in ids]
    for index, token_id in enumerate(plain):
        if not is_integer(token_id):
            raise RequestError(f"prompt_token_ids[{index}] is {shortened(token_id)}; allowed: integers")
    return plain  # type: ignore[return-value]


def _as_integer(value: object) -> object:
    """An integer of numpy or torch as one of Python; anything else as it is."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def encode(
    prompt: object, tokenizer: Tokenizer | None, vocab_size: int, max_seq_len: int
) -> tuple[str | None, list[int]]:
    """The text of a prompt, if it is one, and its token ids.

    Raises RequestError on a prompt that is in no known form, cannot be encoded, or cannot fit ``max_seq_len`` tokens.
    """
    plain = as_prompt(prompt)
    if isinstance(plain, dict):
        ids = plain["prompt_token_ids"]
        for index, token_id in enumerate(ids):
            if not 0 <= token_id < vocab_size:
                allowed = f"integers in 0..{vocab_size - 1}, the model's vocabulary"
                raise RequestError(f"prompt_token_ids[{index}] is {shortened(token_id)}; allowed: {allowed}")
        return None, ids
    if tokenizer is None:
        raise RequestError('this engine has no tokenizer; give the prompt as {"prompt_token_ids": [...]}')
    _check_length([plain] if isinstance(plain, str) else plain, max_seq_len)
    if isinstance(plain, str):
        return plain, tokenizer.encode(plain)
    return None, tokenizer.chat_ids(plain)


def _check_length(parts: Sequence[object], max_seq_len: int) -> None:
    """Refuse texts and messages that cannot fit, before time is spent on them."""
    if len(parts) > max_seq_len:
        raise RequestError(f"prompt has {len(parts)} messages; allowed: at most {max_seq_len}; leave out old ones")
    texts = (part.get("content") if isinstance(part, Mapping) else part for part in parts)
    characters, most = sum(len(text) for text in texts if isinstance(text, str)), CHARACTERS_PER_TOKEN * max_seq_len
    if characters > most:
        raise RequestError(f"prompt has {characters} characters; allowed: at most {most}; shorten the prompt")


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
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
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
    try:
        if not isinstance(value, Mapping):
            raise RequestError(f"is {shortened(value)}; allowed: an object with one key of {', '.join(KEYS)}")
        return as_prompt(value)
    except RequestError as error:
        raise ConfigError(f"{where}: {error}") from error
