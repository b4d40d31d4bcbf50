"""Answer: what a request's canvas says so far, as the output that the user gets."""

from __future__ import annotations

import time
from collections.abc import Sequence

from d3llm_trt.errors import D3llmError
from d3llm_trt.runtime.decoding.state import MASKED
from d3llm_trt.runtime.incremental_text import IncrementalText
from d3llm_trt.runtime.outputs import Canvas, CompletionOutput, RequestMetrics, RequestOutput
from d3llm_trt.runtime.request import Request
from d3llm_trt.tokenizer import Tokenizer


class Answer:
    """Turns canvases of one request into outputs. What it showed once, it never takes back."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None, end_ids: Sequence[int]) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._text = None if tokenizer is None else IncrementalText(tokenizer)
        self._end_ids = frozenset(end_ids)
        self._pass_times: list[float] = []
        self._shown = 0

    def note_pass(self) -> None:
        """A forward pass for this request has ended."""
        self._pass_times.append(time.perf_counter())

    @property
    def looks_at_every_pass(self) -> bool:
        """Whether the canvas is needed before the request is done."""
        request = self._request
        return request.stream or request.canvas or bool(request.params.stop_strings)

    def output(
        self, canvas: Sequence[int], steps: Sequence[int], *, done: bool, logprobs: Sequence[float] | None = None
    ) -> RequestOutput:
        """The committed prefix of the answer; all of it if ``done``. Finished too once a stop string is in its text."""
        prompt = len(self._request.prompt_token_ids)
        ids, commit_steps = list(canvas[prompt:]), list(steps[prompt:])
        count = commit_steps.index(MASKED) if MASKED in commit_steps else len(ids)
        end = next((index for index, token_id in enumerate(ids[:count]) if token_id in self._end_ids), None)
        ended, stopped_by_id = end is not None, None
        if end is not None:
            count = end + 1
            stopped_by_id = ids[end] if ids[end] in self._request.params.stop_token_ids else None
        whole = done or ended
        text, stopped_by = self._stopped(self._decode(ids[:count], whole), whole)
        if stopped_by is not None:
            count = self._shortest_with(ids[:count], stopped_by)
        reason = "stop" if ended or stopped_by is not None else "length" if done else None
        finished = done or stopped_by is not None
        told = None if logprobs is None else list(logprobs[prompt : prompt + count])
        completion = CompletionOutput(
            text=text,
            token_ids=ids[:count],
            commit_steps=commit_steps[:count],
            finish_reason=reason if finished else None,
            stop_reason=stopped_by or stopped_by_id,
            seed=self._request.params.seed,
            logprobs=told,
            cumulative_logprob=None if told is None else sum(told),
        )
        return self._output(completion, canvas, steps, finished)

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
        passes, start = len(self._pass_times), self._request.submitted
        ends = not self._end_ids.isdisjoint(completion.token_ids[-1:])
        tokens = len(completion.token_ids) - ends
        first = completion.commit_steps[0] if completion.commit_steps else None
        return RequestMetrics(
            num_forward_passes=passes,
            tokens_per_forward=tokens / passes if passes else 0.0,
            time_to_first_token=None if first is None else self._pass_times[first - 1] - start,
            latency=time.perf_counter() - start,
        )

    def _decode(self, ids: list[int], final: bool) -> str:
        return "" if self._text is None else self._text.update(ids, final=final)

    def _stopped(self, text: str, whole: bool) -> tuple[str, str | None]:
        """Cut ``text`` before the first stop string, or hold back what may become one."""
        stops = self._request.params.stop_strings
        found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda item: item[0])
            return text[:at], stop
        if whole or not stops:
            return text, None
        return text[: len(text) - max(_overlap(text, stop) for stop in stops)], None

    def _shortest_with(self, ids: list[int], stop: str) -> int:
        """How many ids it takes for their text to hold ``stop``."""
        assert self._tokenizer is not None
        decode = self._tokenizer.decode
        return next(count for count in range(1, len(ids) + 1) if stop in decode(ids[:count]))


def failed_output(request: Request, error: D3llmError, passes: int = 0) -> RequestOutput:
    """The output of a request that failed after some passes."""
    metrics = RequestMetrics(num_forward_passes=passes, latency=time.perf_counter() - request.submitted)
    completion = CompletionOutput(finish_reason="error")
    return RequestOutput(
        request.request_id, request.prompt, request.prompt_token_ids, [completion], True, metrics, error
    )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
