"""What the model counts, on Triton's own metrics endpoint."""

from __future__ import annotations

from typing import Any

from d3llm_trt.runtime.outputs import RequestOutput

COUNTERS = {
    "d3llm_requests_total": "Requests answered, with or without an error",
    "d3llm_failed_requests_total": "Requests that ended with an error",
    "d3llm_generated_tokens_total": "Generated tokens",
    "d3llm_forward_passes_total": "Forward passes, counted once per request in them",
    "d3llm_first_token_seconds_total": "Seconds from arrival to the first token, over all requests",
    "d3llm_latency_seconds_total": "Seconds from arrival to the answer, over all requests",
}
GAUGES = {
    "d3llm_tokens_per_forward": "Tokens before EOS per forward pass of the last request",
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
        """A request has ended."""
        metrics, tokens = output.metrics, len(output.outputs[0].token_ids)
        added = {
            "d3llm_requests_total": 1,
            "d3llm_failed_requests_total": int(output.error is not None),
            "d3llm_generated_tokens_total": tokens,
            "d3llm_forward_passes_total": metrics.num_forward_passes,
            "d3llm_first_token_seconds_total": metrics.time_to_first_token or 0.0,
            "d3llm_latency_seconds_total": metrics.latency,
        }
        for name, value in added.items():
            self._metrics[name].increment(value)
        self._metrics["d3llm_tokens_per_forward"].set(metrics.tokens_per_forward)

    def gauge(self, waiting: int, running: int) -> None:
        """How full the scheduler is."""
        self._metrics["d3llm_queue_depth"].set(waiting)
        self._metrics["d3llm_slots_in_use"].set(running)
