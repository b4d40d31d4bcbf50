"""Several answers to one prompt: requests of their own, joined into one output."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

from d3llm_trt.runtime.outputs import CompletionOutput, RequestMetrics, RequestOutput
from d3llm_trt.runtime.request import Sink


class Samples:
    """Joins the outputs of ``count`` requests; ``sink`` gets the joined ones, the last of which is finished.

    Without ``stream`` it gets only that one. Outputs may come from several threads.
    """

    def __init__(self, count: int, sink: Sink, stream: bool) -> None:
        self._outputs: list[RequestOutput | None] = [None] * count
        self._sink, self._stream = sink, stream
        self._lock = threading.Lock()

    def sink_of(self, index: int) -> Sink:
        """Where the request of one of the answers gives its outputs."""
        return partial(self._take, index)

    def _take(self, index: int, output: RequestOutput) -> None:
        with self._lock:
            self._outputs[index] = output
            joined = _joined(self._outputs)
        if self._stream or joined.finished:
            self._sink(joined)


def _joined(outputs: list[RequestOutput | None]) -> RequestOutput:
    """One output of all that there are; answers that have not begun are empty."""
    known = [output for output in outputs if output is not None]
    answers = [CompletionOutput() if output is None else output.outputs[0] for output in outputs]
    return replace(
        known[0],
        outputs=[replace(answer, index=index) for index, answer in enumerate(answers)],
        finished=len(known) == len(outputs) and all(output.finished for output in known),
        metrics=_joined_metrics([output.metrics for output in known]),
        error=next((output.error for output in known if output.error is not None), None),
    )


def _joined_metrics(parts: list[RequestMetrics]) -> RequestMetrics:
    """Passes of all answers together, and tokens by all of them; the first token and the last answer count."""
    passes = sum(part.num_forward_passes for part in parts)
    tokens = sum(part.tokens_per_forward * part.num_forward_passes for part in parts)
    firsts = [part.time_to_first_token for part in parts if part.time_to_first_token is not None]
    return RequestMetrics(
        num_forward_passes=passes,
        tokens_per_forward=tokens / passes if passes else 0.0,
        time_to_first_token=min(firsts, default=None),
        latency=max(part.latency for part in parts),
    )
