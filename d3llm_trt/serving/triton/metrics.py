"""What the model counts, on Triton's own metrics endpoint."""

from __future__ import annotations

from typing import Any

from d3llm_trt.runtime.outputs import RequestOutput

COUNTERS = {
    "d3llm_requests_total": "Requests that were answered in full",
    "d3llm_failed_requests_total": "Requests that ended with an error of the engine",
    "d3llm_rejected_requests_total": "Requests that were refused: bad input, or a full queue",
    "d3llm_cancelled_requests_total": "Requests whose client went away",
    "d3llm_generated_tokens_total": "Generated tokens before EOS of answered requests",
    "d3llm_forward_passes_total": "Forward passes of answered requests",
    "d3llm_first_token_seconds_total": "Seconds from arrival to the first token, over answered requests",
    "d3llm_latency_seconds_total": "Seconds from arrival to the end, over answered requests",
}
GAUGES = {
    "d3llm_tokens_per_forward": "Tokens before EOS per forward pass of the last answered request",
    "d3llm_queue_depth": "Requests that wait for a slot",
    "d3llm_slots_in_use": "Requests being decoded",
}


class Metrics:
    """Counters and gauges of one model instance, labelled with its name."""

    def __init__(self, pb: Any, model: str, version: str, instance: str) -> None:
        labels = {"model": model, "version": version, "instance": instance}
        kinds = {**dict.fromkeys(COUNTERS, pb.MetricFamily.COUNTER), **dict.fromkeys(GAUGES, pb.MetricFamily.GAUGE)}
        # A family must live as long as its metrics.
        self._families = {
            name: pb.MetricFamily(name=name, description=text, kind=kinds[name])
            for name, text in {**COUNTERS, **GAUGES}.items()
        }
        self._metrics = {name: family.Metric(labels=labels) for name, family in self._families.items()}

    def count(self, output: RequestOutput) -> None:
        """A request has ended in the runtime."""
        if output.error is not None:
            self._metrics["d3llm_failed_requests_total"].increment(1)
            return
        metrics = output.metrics
        added = {
            "d3llm_requests_total": 1,
            "d3llm_generated_tokens_total": round(metrics.tokens_per_forward * metrics.num_forward_passes),
            "d3llm_forward_passes_total": metrics.num_forward_passes,
            "d3llm_first_token_seconds_total": metrics.time_to_first_token or 0.0,
            "d3llm_latency_seconds_total": metrics.latency,
        }
        for name, value in added.items():
            self._metrics[name].increment(value)
        self._metrics["d3llm_tokens_per_forward"].set(metrics.tokens_per_forward)

    def rejected(self) -> None:
        """A request was refused."""
        self._metrics["d3llm_rejected_requests_total"].increment(1)

    def cancelled(self) -> None:
        """A client went away."""
        self._metrics["d3llm_cancelled_requests_total"].increment(1)

    def gauge(self, waiting: int, running: int) -> None:
        """How full the scheduler is."""
        self._metrics["d3llm_queue_depth"].set(waiting)
        self._metrics["d3llm_slots_in_use"].set(running)
