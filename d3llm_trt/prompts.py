"""Prompts that users give, in any form, and their token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from d3llm_trt.errors import RequestError
from d3llm_trt.settings import is_integer, shortened

if TYPE_CHECKING:
    from d3llm_trt.tokenizer import Tokenizer

KEYS = ("prompt", "messages", "prompt_token_ids")
FORMS = 'a str, a list of chat messages, {"prompt": "..."}, {"messages": [...]} or {"prompt_token_ids": [...]}'
CHARACTERS_PER_TOKEN = 128  # longer texts cannot fit, and to find that out would take time
SYSTEM_ROLES = ("system", "developer")
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


def _characters(content: object) -> int:
    """How many there are in a text, or in a list of text parts, each of which ends a line."""
    if isinstance(content, (list, tuple)):
        return sum(1 + _characters(part.get("text")) for part in content if isinstance(part, Mapping))
    return len(content) if isinstance(content, str) else 0


def _check_length(parts: Sequence[object], max_seq_len: int) -> None:
    """Refuse texts and messages that cannot fit, before time is spent on them."""
    if len(parts) > max_seq_len:
        raise RequestError(f"prompt has {len(parts)} messages; allowed: at most {max_seq_len}; leave out old ones")
    contents = (part.get("content") if isinstance(part, Mapping) else part for part in parts)
    characters, most = sum(map(_characters, contents)), CHARACTERS_PER_TOKEN * max_seq_len
    if characters > most:
        raise RequestError(f"prompt has {characters} characters; allowed: at most {most}; shorten the prompt")


def as_chat(prompt: Prompt, system: str | None) -> Prompt:
    """Text as a user's message; ``system`` leads unless a system message already does. Token ids stay as they are."""
    if isinstance(prompt, dict):
        return prompt
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    first = messages[0] if messages else None
    if system is None or (isinstance(first, Mapping) and first.get("role") in SYSTEM_ROLES):
        return messages
    return [{"role": "system", "content": system}, *messages]
