"""Request: one checked prompt with its settings, ready for the scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from d3llm_trt.errors import RequestError, only_this_request
from d3llm_trt.prompts import encode
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.decoding.state import end_ids_of
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.outputs import RequestOutput
from d3llm_trt.tokenizer import Tokenizer

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
        return len(self.prompt_token_ids) + self.params.num_tokens


@dataclass(frozen=True)
class RequestMaker:
    """Checks prompts against one engine and its tokenizer."""

    spec: EngineSpec
    tokenizer: Tokenizer | None

    def make(self, request_id: str, prompt: object, params: SamplingParams, sink: Sink, **options: bool) -> Request:
        """A request from a prompt in any of its forms. Raises RequestError naming what is wrong with it."""
        with only_this_request("the prompt could not be read"):
            text, ids = encode(prompt, self.tokenizer, self.spec.model_config.vocab_size, self.spec.max_seq_len)
        if params.max_tokens is None:
            params = replace(params, max_tokens=max(1, self.spec.max_seq_len - len(ids)))
        request = Request(request_id, text, ids, params.with_seed(), sink, **options)
        self._check(request)
        return request

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
        if params.max_tokens == 0 and config.mask_token_id not in request.prompt_token_ids:
            raise RequestError(
                "max_tokens is 0 and the prompt has no mask id, so there is nothing to fill in; raise max_tokens"
            )
        for name, ids in (("end_id", [params.end_id]), ("stop_token_ids", params.stop_token_ids)):
            self._check_ends(name, ids)
        end_ids_of(config, params)
        if params.stop_strings and self.tokenizer is None:
            raise RequestError("stop needs a tokenizer, which this engine lacks; leave out stop")
        params.decoding.steps_per_block(params.num_tokens)

    def _check_ends(self, name: str, ids: Sequence[int | None]) -> None:
        config = self.spec.model_config
        for token_id in ids:
            if token_id is not None and token_id >= config.vocab_size:
                raise RequestError(f"{name} is {token_id}; allowed: 0..{config.vocab_size - 1}, or None")
            if token_id == config.mask_token_id:
                raise RequestError(f"{name} is {token_id}, the mask id; allowed: any other id, or None")
