"""Request: one checked prompt with its settings, ready for the scheduler."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from d3llm_trt.errors import RequestError
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.decoding.state import new_request
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.outputs import RequestOutput
from d3llm_trt.settings import is_integer
from d3llm_trt.tokenizer import Tokenizer

ALLOWED = 'a str, {"prompt_token_ids": [...]}, {"prompt": "..."}, or a list of chat messages'
CHARACTERS_PER_TOKEN = 128  # longer texts cannot fit, and to find that out would take time
Sink = Callable[[RequestOutput], None]


@dataclass(frozen=True)
class Request:
    """A prompt that fits the engine. ``sink`` gets its outputs, on the scheduler's thread: the last one finished.

    With ``stream`` the sink also gets every growth of the answer; with ``canvas`` every pass, with the whole canvas.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    sink: Sink
    stream: bool = False
    canvas: bool = False
    submitted: float = field(default_factory=time.perf_counter)

    @property
    def length(self) -> int:
        """Positions of its canvas."""
        return len(self.prompt_token_ids) + self.params.max_tokens


@dataclass(frozen=True)
class RequestMaker:
    """Checks prompts against one engine and its tokenizer."""

    spec: EngineSpec
    tokenizer: Tokenizer | None

    def make(self, request_id: str, prompt: object, params: SamplingParams, sink: Sink, **options: bool) -> Request:
        """A request from a prompt in any of its forms. Raises RequestError naming what is wrong with it."""
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params is {params!r}; allowed: SamplingParams")
        text, ids = self._read(prompt)
        request = Request(request_id, text, ids, params, sink, **options)
        self._check(request)
        return request

    def _read(self, prompt: object) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            most = CHARACTERS_PER_TOKEN * self.spec.max_seq_len
            if len(prompt) > most:
                raise RequestError(f"prompt has {len(prompt)} characters; allowed: at most {most}; shorten the prompt")
            return prompt, self._known_tokenizer().encode(prompt)
        if isinstance(prompt, Mapping):
            return self._read_mapping(prompt)
        if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
            return None, self._known_tokenizer().chat_ids(prompt)
        raise RequestError(f"prompt is {_short(prompt)}; allowed: {ALLOWED}")

    def _read_mapping(self, prompt: Mapping[Any, Any]) -> tuple[str | None, list[int]]:
        if {"role", "content"} & prompt.keys():
            raise RequestError(f"prompt is {_short(prompt)}, one chat message; allowed: a list of messages: [[...]]")
        if prompt.keys() == {"prompt"}:
            if not isinstance(prompt["prompt"], str):
                raise RequestError(f"prompt is {_short(prompt['prompt'])}; allowed: a str")
            return self._read(prompt["prompt"])
        if prompt.keys() != {"prompt_token_ids"}:
            raise RequestError(f"prompt has the keys {sorted(map(str, prompt))}; allowed: {ALLOWED}")
        return None, _checked_ids(prompt["prompt_token_ids"], self.spec.model_config.vocab_size)

    def _known_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError('this engine has no tokenizer; give the prompt as {"prompt_token_ids": [...]}')
        return self.tokenizer

    def _check(self, request: Request) -> None:
        params, config = request.params, self.spec.model_config
        if not request.prompt_token_ids:
            raise RequestError("prompt is empty; allowed: at least one token")
        if request.length > self.spec.max_seq_len:
            raise RequestError(
                f"prompt has {len(request.prompt_token_ids)} tokens and max_tokens is {params.max_tokens}; allowed: at "
                f"most max_seq_len, {self.spec.max_seq_len}, together; shorten the prompt, lower max_tokens, or build "
                "the engine with a higher max_seq_len"
            )
        if params.end_id is not None and params.end_id >= config.vocab_size:
            raise RequestError(f"end_id is {params.end_id}; allowed: 0..{config.vocab_size - 1}, or None")
        if params.end_id == config.mask_token_id:
            raise RequestError(f"end_id is {params.end_id}, the mask id; allowed: any other id, or None")
        if params.stop_strings and self.tokenizer is None:
            raise RequestError("stop needs a tokenizer, which this engine lacks; leave out stop")
        new_request(config, request.prompt_token_ids, params)


def _checked_ids(ids: object, vocab_size: int) -> list[int]:
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Iterable):
        raise RequestError(f"prompt_token_ids is {_short(ids)}; allowed: a list of token ids")
    plain = [_as_integer(token_id) for token_id in ids]
    for index, token_id in enumerate(plain):
        if not is_integer(token_id) or not 0 <= token_id < vocab_size:  # type: ignore[operator]
            raise RequestError(
                f"prompt_token_ids[{index}] is {_short(token_id)}; allowed: integers in 0..{vocab_size - 1}, the "
                "model's vocabulary"
            )
    return plain  # type: ignore[return-value]


def _as_integer(value: object) -> object:
    """An integer of numpy or torch as one of Python; anything else as it is."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
