"""Answer: what a request's canvas says so far, as the output that the user gets."""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from dataclasses import dataclass

from d3llm_trt.errors import D3llmError
from d3llm_trt.runtime.decoding.state import MASKED
from d3llm_trt.runtime.endings import Endings, StopReason, first_of
from d3llm_trt.runtime.incremental_text import REPLACEMENT, IncrementalText
from d3llm_trt.runtime.outputs import Canvas, CompletionOutput, RequestMetrics, RequestOutput
from d3llm_trt.runtime.request import Request
from d3llm_trt.tokenizer import Tokenizer


@dataclass(frozen=True)
class _Ending:
    """How far an answer goes: ``count`` ids, and their ``text``.

    ``stopped``: by something that the request named, which ``reason`` tells; ``ended``: by that or an end id.
    """

    count: int
    text: str
    ended: bool
    stopped: bool
    reason: StopReason


class Answer:
    """Turns canvases of one request into outputs. What it showed once, it never takes back."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None, end_ids: Sequence[int]) -> None:
        params = request.params
        self._request = request
        self._tokenizer = tokenizer
        self._text = None if tokenizer is None else IncrementalText(tokenizer, params.skip_special_tokens)
        self._endings = Endings.of(params, end_ids, tokenizer)
        self._pass_times: list[float] = []
        self._shown = 0

    def note_pass(self) -> None:
        """A forward pass for this request has ended."""
        self._pass_times.append(time.perf_counter())

    @property
    def looks_at_every_pass(self) -> bool:
        """Whether the canvas is needed before the request is done."""
        request = self._request
        stops = request.params.stop_strings or request.params.stop_token_ids
        return request.stream or request.canvas or bool(stops)

    def output(
        self, canvas: Sequence[int], steps: Sequence[int], *, done: bool, logprobs: Sequence[float] | None = None
    ) -> RequestOutput:
        """The committed prefix of the answer, all of it if ``done``; finished too at a stop that the request named."""
        prompt = len(self._request.prompt_token_ids)
        ids, commit_steps = list(canvas[prompt:]), list(steps[prompt:])
        count = commit_steps.index(MASKED) if MASKED in commit_steps else len(ids)
        ending = self._ending(ids[:count], done)
        finished = done or ending.stopped
        reason = "stop" if ending.ended else "length"
        known = None if logprobs is None else list(logprobs[prompt : prompt + ending.count])
        completion = CompletionOutput(
            text=ending.text,
            token_ids=ids[: ending.count],
            commit_steps=commit_steps[: ending.count],
            finish_reason=reason if finished else None,
            stop_reason=ending.reason if finished else None,
            seed=self._request.params.seed,
            logprobs=known,
            cumulative_logprob=None if known is None else sum(known),
        )
        return self._output(completion, canvas, steps, finished)

    def _ending(self, ids: list[int], done: bool) -> _Ending:
        """How far the answer goes in ``ids``, its committed prefix."""
        include = self._request.params.include_stop_str_in_output
        end, turn = self._endings.first_id(ids), self._endings.first_turn(ids)
        ids = ids if end is None else ids[: end + 1]
        shown = ids if end is None or include else ids[:end]
        turns = turn is not None and (end is None or turn < end)
        shown = shown[:turn] if turns else shown
        whole = done or turns or end is not None
        text = "" if self._text is None else self._text.update(shown, final=whole)
        if (place := first_of(self._endings.strings, text)) is not None:
            at, stop = place
            text = text[: at + include * len(stop)]
            return _Ending(self._shortest_with(ids, stop), text, True, True, stop)
        if self._endings.mixed and (mixed := self._mixed(ids)) is not None:
            return mixed
        if not whole:
            text = text[: len(text) - self._endings.held_back(text)]
        reason = None if end is None else self._endings.ids[ids[end]]
        return _Ending(len(ids), text, turns or end is not None, reason is not None, reason)

    def _mixed(self, ids: list[int]) -> _Ending | None:
        """The ending at a string that holds special tokens: it is looked for in the text that shows them."""
        assert self._tokenizer is not None
        raw = self._tokenizer.decode(ids, skip_special_tokens=False)
        place = first_of(self._endings.mixed, raw)
        if place is None:
            return None
        at, stop = place

        def length(count: int) -> int:
            return len(self._prefix(ids, count, special=True))

        before = bisect.bisect_right(range(len(ids) + 1), at, key=length) - 1
        text = self._tokenizer.decode(ids[:before]) + raw[length(before) : at]
        text += self._request.params.include_stop_str_in_output * stop
        return _Ending(self._shortest_with(ids, stop, special=True), text, True, True, stop)

    def is_news(self, output: RequestOutput) -> bool:
        """Whether the request wants to see ``output``; remembers that it did."""
        count = len(output.outputs[0].token_ids)
        grown, self._shown = count > self._shown, count
        return output.finished or self._request.canvas or (self._request.stream and grown)

    def failure(self, error: D3llmError) -> RequestOutput:
        """The output of a request that failed."""
        return failed_output(self._request, error, len(self._pass_times))

    def _output(
        self, completion: CompletionOutput, canvas: Sequence[int], steps: Sequence[int], finished: bool
    ) -> RequestOutput:
        request = self._request
        prompt = len(request.prompt_token_ids)
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=list(canvas[:prompt]),
            outputs=[completion],
            finished=finished,
            metrics=self._metrics(completion),
            canvas=Canvas(list(canvas), list(steps), prompt) if request.canvas else None,
        )

    def _metrics(self, completion: CompletionOutput) -> RequestMetrics:
        passes, start, ids = len(self._pass_times), self._request.submitted, completion.token_ids
        ends = bool(ids) and self._endings.ids.get(ids[-1], ids[-1]) is None
        tokens = len(ids) - ends
        first = completion.commit_steps[0] if completion.commit_steps else None
        return RequestMetrics(
            num_forward_passes=passes,
            tokens_per_forward=tokens / passes if passes else 0.0,
            time_to_first_token=None if first is None else self._pass_times[first - 1] - start,
            latency=time.perf_counter() - start,
        )

    def _shortest_with(self, ids: list[int], stop: str, special: bool = False) -> int:
        """How many ids it takes for their text to hold ``stop``."""
        return bisect.bisect_left(range(len(ids)), True, key=lambda count: stop in self._prefix(ids, count, special))

    def _prefix(self, ids: list[int], count: int, special: bool) -> str:
        """The text of the first ``count`` ids, without a character at its end that is not complete."""
        assert self._tokenizer is not None
        skip = self._request.params.skip_special_tokens and not special
        return self._tokenizer.decode(ids[:count], skip_special_tokens=skip).rstrip(REPLACEMENT)


def failed_output(request: Request, error: D3llmError, passes: int = 0) -> RequestOutput:
    """The output of a request that failed after some passes."""
    metrics = RequestMetrics(num_forward_passes=passes, latency=time.perf_counter() - request.submitted)
    completion = CompletionOutput(finish_reason="error")
    return RequestOutput(
        request.request_id, request.prompt, request.prompt_token_ids, [completion], True, metrics, error
    )
