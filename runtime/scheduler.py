"""Scheduler: continuous batching. Requests join and leave between steps, first come, first served."""

from __future__ import annotations

import heapq
import logging
from collections import deque

from d3llm_trt.errors import D3llmError, EngineError, only_this_request
from d3llm_trt.runtime.answer import Answer, failed_output
from d3llm_trt.runtime.decoder import Decoder, engine_failure
from d3llm_trt.runtime.decoding.state import end_ids_of
from d3llm_trt.runtime.decoding.step import SlotReport
from d3llm_trt.runtime.outputs import RequestOutput
from d3llm_trt.runtime.request import Request
from d3llm_trt.tokenizer import Tokenizer

FAILURES_OF_A_BROKEN_ENGINE = 3
_LOG = logging.getLogger(__name__)


class Scheduler:
    """Owns the slots of a decoder. Not thread-safe: one thread adds, cancels and steps.

    A request waits until there is a slot for it and room for its whole canvas among ``max_num_tokens``; nobody
    behind it in the queue overtakes it.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer | None) -> None:
        self.spec = decoder.spec
        self.tokenizer = tokenizer
        self._decoder = decoder
        self._waiting: deque[Request] = deque()
        self._running: dict[int, tuple[Request, Answer]] = {}
        # Lowest first, so that the slots in use lie close together.
        self._free = list(range(self.spec.max_batch_size))
        self._failures_in_a_row = 0

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._waiting or self._running)

    @property
    def load(self) -> tuple[int, int]:
        """How many requests wait, and how many have a slot; any thread may ask."""
        return len(self._waiting), len(self._running)

    @property
    def healthy(self) -> bool:
        """Whether the engine works: one failure may be a request's, several in a row are the engine's."""
        return self._failures_in_a_row < FAILURES_OF_A_BROKEN_ENGINE

    def close(self) -> None:
        """The engine is not used any more."""
        self._decoder.close()

    def add(self, request: Request) -> None:
        """Queue a request."""
        self._waiting.append(request)

    def cancel(self, request_id: str) -> None:
        """Forget a request; its slot is free at the next step. Its sink is not called again."""
        self._waiting = deque(request for request in self._waiting if request.request_id != request_id)
        for slot, (request, _) in list(self._running.items()):
            if request.request_id == request_id:
                self._release(slot)

    def step(self) -> None:
        """Admit what fits, make one pass for all running requests, and give their outputs to their sinks.

        An engine that fails, fails the requests in this pass; the scheduler goes on.
        """
        self._admit()
        slots = sorted(self._running)
        if not slots:
            return
        try:
            reports = dict(zip(slots, self._decoder.step(slots), strict=True))
            visible = [slot for slot in slots if self._looks_at(slot, reports[slot])]
            canvases = dict(zip(visible, self._decoder.read(visible), strict=True))
            scored = [slot for slot in visible if self._running[slot][0].params.tells_logprobs]
            logprobs = dict(zip(scored, self._decoder.read_logprobs(scored), strict=True))
        except Exception as error:  # noqa: BLE001 (whatever an engine raises must reach the requests it ran)
            self._failures_in_a_row += 1
            self.fail_running(engine_failure(error))
            return
        self._failures_in_a_row = 0
        for slot in slots:
            self._deliver(slot, reports[slot], canvases.get(slot), logprobs.get(slot))

    def fail_all(self, error: D3llmError) -> None:
        """End every request with ``error``."""
        self.fail_running(error)
        while self._waiting:
            request = self._waiting.popleft()
            self._give(request, failed_output(request, error))

    def fail_running(self, error: D3llmError) -> None:
        """End every request that has a slot with ``error``."""
        for slot, (request, answer) in list(self._running.items()):
            self._release(slot)
            self._give(request, answer.failure(error))

    def _admit(self) -> None:
        while self._waiting and self._free and self._has_room(self._waiting[0]):
            request, slot = self._waiting.popleft(), self._free[0]
            try:
                self._decoder.admit(slot, request.prompt_token_ids, request.params)
            except Exception as error:  # noqa: BLE001 (as in a step: whatever it is, only this request fails)
                self._failures_in_a_row += 1
                self._give(request, failed_output(request, engine_failure(error)))
                continue
            heapq.heappop(self._free)
            end_ids = end_ids_of(self.spec.model_config, request.params)
            self._running[slot] = (request, Answer(request, self.tokenizer, end_ids))

    def _has_room(self, request: Request) -> bool:
        taken = sum(other.length for other, _ in self._running.values())
        return taken + request.length <= self.spec.max_num_tokens

    def _looks_at(self, slot: int, report: SlotReport) -> bool:
        """Whether a request's canvas is needed after this pass."""
        return not report.failed and (report.done or self._running[slot][1].looks_at_every_pass)

    def _deliver(
        self,
        slot: int,
        report: SlotReport,
        canvas: tuple[list[int], list[int]] | None,
        logprobs: list[float] | None,
    ) -> None:
        request, answer = self._running[slot]
        answer.note_pass()
        if report.failed:
            fix = "check the weights, or use a wider dtype"
            output = answer.failure(EngineError(f"pass {report.passes} gave logits that are not numbers; {fix}"))
        elif canvas is not None:
            output = self._output(answer, *canvas, report.done, logprobs)
        else:
            return
        if output.finished:
            self._release(slot)
        if answer.is_news(output):
            self._give(request, output)

    @staticmethod
    def _output(
        answer: Answer, canvas: list[int], commit_steps: list[int], done: bool, logprobs: list[float] | None
    ) -> RequestOutput:
        """What the answer looks like now; a text that cannot be made fails only its own request."""
        try:
            with only_this_request("the answer's text could not be made"):
                return answer.output(canvas, commit_steps, done=done, logprobs=logprobs)
        except D3llmError as error:
            return answer.failure(error)

    def _release(self, slot: int) -> None:
        del self._running[slot]
        heapq.heappush(self._free, slot)

    @staticmethod
    def _give(request: Request, output: RequestOutput) -> None:
        """Call a sink; one that raises harms nobody else."""
        if output.error is not None:
            _LOG.warning("request %s failed: %s", request.request_id, output.error)
        elif output.finished:
            tokens, passes = len(output.outputs[0].token_ids), output.metrics.num_forward_passes
            _LOG.debug("request %s: %d tokens in %d passes", request.request_id, tokens, passes)
        try:
            request.sink(output)
        except Exception:  # noqa: BLE001 (it is logged, and it is not the scheduler's)
            _LOG.exception("the sink of request %s failed", request.request_id)
