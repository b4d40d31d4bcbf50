"""Tokenizer: text and chat messages to ids and back, from an engine directory's tokenizer files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import tokenizers

from d3llm_trt.errors import ConfigError, EngineError, RequestError
from d3llm_trt.manifest import REBUILD
from d3llm_trt.model.config import Family
from d3llm_trt.settings import shortened
from d3llm_trt.strict_json import read_object
from d3llm_trt.tokenizer_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, TokenizerConfig

ROLES = ("system", "developer", "user", "assistant")
DREAM_SYSTEM_MESSAGE = "You are a helpful assistant."

Message = Mapping[str, str]


class Special(str):
    """The content of a special token inside a rendered chat; any other str there is plain text."""


class Tokenizer:
    """Encodes plain text only: no text, whatever it looks like, yields the id of a special token."""

    def __init__(self, model: tokenizers.Tokenizer, config: TokenizerConfig) -> None:
        self.config = config
        self._model = model
        self._special_ids = dict(config.special_tokens)
        self._special_texts = {token_id: content for content, token_id in config.special_tokens.items()}
        visible = set(config.visible_tokens)
        self._hidden_ids = {i for i, content in self._special_texts.items() if content not in visible}

    @classmethod
    def load(cls, engine_dir: Path | str) -> Tokenizer | None:
        """The tokenizer of an engine directory, or None if it has none. Raises EngineError if it is damaged."""
        paths = [Path(engine_dir) / name for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE)]
        missing = [path for path in paths if not path.is_file()]
        if len(missing) == len(paths):
            return None
        if missing:
            raise EngineError(f"{missing[0]}: missing; {REBUILD}")
        return cls(_load_model(paths[0]), _load_config(paths[1]))

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer has all special tokens that its family's chat template needs."""
        return not self._missing_chat_tokens()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Raises RequestError if ``text`` is not a valid Unicode string."""
        if not isinstance(text, str):
            raise RequestError(f"text is {text!r}; allowed: a str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"text has {text[error.start]!r} at character {error.start}; allowed: valid Unicode; "
                "decode the input as UTF-8 first"
            ) from error
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ``ids``: special tokens left out or as their content, unknown ids left out."""
        if skip_special_tokens:
            ids = [token_id for token_id in ids if token_id not in self._hidden_ids]
        texts: list[str] = []
        plain: list[int] = []
        for token_id in ids:
            if token_id not in self._special_texts:
                plain.append(token_id)
                continue
            texts += [self._decode_plain(plain), self._special_texts[token_id]]
            plain = []
        return "".join([*texts, self._decode_plain(plain)])

    def id_of(self, content: str) -> int | None:
        """The id of the special token with this content, if there is one."""
        return self._special_ids.get(content)

    def first_special(self, text: str) -> int:
        """Where the first content of a special token begins in ``text``; its length where there is none."""
        places = (text.find(content) for content in self._special_ids)
        return min((place for place in places if place >= 0), default=len(text))

    @property
    def end_of_turn_id(self) -> int | None:
        """The id that ends a turn of this family's chats, if the tokenizer has it."""
        return self._special_ids.get(END_OF_TURN[self.config.family])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself, special tokens as their content; part of a character shows as U+FFFD."""
        return [self.decode([token_id], skip_special_tokens=False) for token_id in ids]

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, ready for the assistant's answer. Raises RequestError on a bad message."""
        messages = plain_messages(messages)
        if missing := self._missing_chat_tokens():
            raise RequestError(
                f"chat messages need the special token {missing[0]}, which this tokenizer lacks; "
                "give the prompt as text or token ids"
            )
        ids: list[int] = []
        for is_special, text in _segments(CHAT_TEMPLATES[self.config.family](messages)):
            ids += [self._special_ids[text]] if is_special else self.encode(text)
        return ids if self.config.family != "llada" else [self._bos_id(), *ids]

    def _bos_id(self) -> int:
        assert self.config.bos_token_id is not None
        return self.config.bos_token_id

    def _missing_chat_tokens(self) -> list[str]:
        family = self.config.family
        missing = [content for content in CHAT_TOKENS[family] if content not in self._special_ids]
        if family == "llada" and self.config.bos_token_id is None:
            missing.append("<|startoftext|>")
        return missing

    def _decode_plain(self, ids: list[int]) -> str:
        known = [token_id for token_id in ids if 0 <= token_id < 1 << 32]
        text: str = self._model.decode(known, skip_special_tokens=False)
        return text


def plain_messages(messages: object) -> list[dict[str, str]]:
    """Role and content, both text, of every message of a conversation.

    Content may be a list of text parts, which are joined by line breaks; ``name`` and keys that are None, which
    clients send along, are left out; a developer's message is the system's. Raises RequestError on anything else.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise RequestError(f"messages is {shortened(messages)}; allowed: a list of one or more messages")
    return [_plain_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _plain_message(name: str, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{name} is {shortened(message)}; allowed: a mapping with role and content")
    kept = {str(key): value for key, value in message.items() if key != "name" and value is not None}
    if wrong := sorted({"role", "content"}.symmetric_difference(kept)):
        problem = "lacks the key" if wrong[0] in ("role", "content") else "has the unknown key"
        raise RequestError(f"{name} {problem} {shortened(wrong[0])}; allowed: role, content and name")
    role = kept["role"]
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{name} has role {shortened(role)}; allowed: {', '.join(ROLES)}")
    return {"role": "system" if role == "developer" else role, "content": _plain_content(name, kept["content"])}


def _plain_content(name: str, content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise RequestError(f"{name} has content {shortened(content)}; allowed: a str, or a list of text parts")
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            allowed = '{"type": "text", "text": "..."}'
            raise RequestError(f"{name} has content[{index}] {shortened(part)}; allowed: {allowed}")
    return "\n".join(part["text"] for part in content)


def _llada_chat(messages: Sequence[Message]) -> list[str]:
    parts: list[str] = []
    for message in messages:
        content = message["content"].strip()
        parts += [*_llada_header(message["role"]), content, Special("<|eot_id|>")]
    return [*parts, *_llada_header("assistant")]


def _llada_header(role: str) -> list[str]:
    return [Special("<|start_header_id|>"), role, Special("<|end_header_id|>"), "\n\n"]


def _dream_chat(messages: Sequence[Message]) -> list[str]:
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DREAM_SYSTEM_MESSAGE}, *messages]
    parts: list[str] = []
    for message in messages:
        parts += [Special("<|im_start|>"), f"{message['role']}\n{message['content']}", Special("<|im_end|>"), "\n"]
    return [*parts, Special("<|im_start|>"), "assistant\n"]


CHAT_TEMPLATES: dict[Family, Callable[[Sequence[Message]], list[str]]] = {"llada": _llada_chat, "dream": _dream_chat}
END_OF_TURN: dict[Family, str] = {"llada": "<|eot_id|>", "dream": "<|im_end|>"}
CHAT_TOKENS: dict[Family, tuple[str, ...]] = {
    "llada": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "dream": ("<|im_start|>", "<|im_end|>"),
}


def _segments(parts: Sequence[str]) -> list[tuple[bool, str]]:
    """Special tokens, and the joined text between two of them, which is tokenized as one piece."""
    segments: list[tuple[bool, str]] = []
    for part in parts:
        is_special = isinstance(part, Special)
        if segments and not is_special and not segments[-1][0]:
            segments[-1] = (False, segments[-1][1] + part)
        else:
            segments.append((is_special, part))
    return segments


def _load_model(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise EngineError(f"{path}: not a valid tokenizer: {error}; {REBUILD}") from error


def _load_config(path: Path) -> TokenizerConfig:
    try:
        return TokenizerConfig.from_dict(read_object(path, EngineError, REBUILD))
    except ConfigError as error:
        raise EngineError(f"{path}: {error}; {REBUILD}") from error
