"""Steps as CUDA graphs: one per bucket, captured ahead or at its second use, checked against the step it is made of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from d3llm_trt.runtime.decoding.state import DecodingState, Progress
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.stepping.buckets import Buckets, batch_sizes, token_sizes
from d3llm_trt.runtime.stepping.device_step import Bucket, run_bucket
from d3llm_trt.runtime.stepping.measured_sizes import sizes_for

Policy = Literal["all", "largest", "off"]
BLACKWELL = (10, 0)
MOST_GRAPHS = 256
_LOG = logging.getLogger(__name__)


def choose_policy(wanted: str | None, capability: tuple[int, int]) -> Policy:
    """The policy that was asked for, or the default of a GPU: on Blackwell only the largest batch of each size.

    Several captured batch sizes have faulted there.
    """
    if wanted is not None:
        return wanted  # type: ignore[return-value]
    return "largest" if capability >= BLACKWELL else "all"


@dataclass(frozen=True)
class _Captured:
    """A graph, the slots it reads and what they hold now, and where its report goes on the host."""

    graph: torch.cuda.CUDAGraph
    slots: Tensor
    entries: tuple[int, ...]
    report: Tensor


class GraphRunner:
    """Steps an engine through graphs on a stream of its own; falls back to steps without one, with one warning.

    Args:
        engine: on a GPU, and able to run inside a captured graph.
        state: of all its slots; graphs keep its addresses.
        buckets: sizes to capture.
        enabled: False runs every step without a graph.
    """

    def __init__(self, engine: Engine, state: DecodingState, buckets: Buckets, enabled: bool = True) -> None:
        self._engine, self._state, self._buckets = engine, state, buckets
        self.enabled = enabled  # False once a capture has failed
        self._graphs: dict[Bucket, _Captured] = {}
        self._used_once: set[Bucket] = set()  # without a graph
        self._pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(engine.spec.device)  # type: ignore[no-untyped-call]
        # Weights, caches and state may still be on their way there.
        self.stream.wait_stream(torch.cuda.current_stream(engine.spec.device))

    @property
    def captured(self) -> tuple[Bucket, ...]:
        """The buckets that have a graph."""
        return tuple(sorted(self._graphs))

    @property
    def defaults(self) -> tuple[Bucket, ...]:
        """The buckets to capture before there are requests; none without graphs."""
        return self._buckets.defaults(self._engine.spec.max_seq_len) if self.enabled else ()

    def run(self, slots: Sequence[int], tokens: int, rows: int, capture: bool = False) -> Tensor:
        """One pass for the requests in ``slots``; waits for it and returns the report ``[B, 5]`` on the host.

        ``tokens`` and ``rows``: how many rows their windows and candidates need together. A bucket that has no graph
        gets one at its second use, or with ``capture`` at its first: many are used only once.
        """
        bucket = self._buckets.at_least(len(slots), tokens, rows)
        free = self._engine.spec.max_batch_size
        entries = (*slots, *[free] * (bucket.batch - len(slots)))
        with torch.cuda.stream(self.stream):
            report = self._step(bucket, entries, capture)
        self.stream.synchronize()
        return report[: len(slots)]

    def _step(self, bucket: Bucket, entries: tuple[int, ...], capture: bool) -> Tensor:
        captured = self._graphs.pop(bucket, None)
        if captured is None and self.enabled and (capture or bucket in self._used_once):
            self._used_once.discard(bucket)
            return self._step_and_capture(bucket, entries)
        if captured is None:
            self._used_once.add(bucket)
            return run_bucket(self._engine, self._state, self._on_device(entries), bucket).cpu()
        if captured.entries != entries:
            captured.slots.copy_(torch.tensor(entries))
            captured = replace(captured, entries=entries)
        self._keep(bucket, captured)
        captured.graph.replay()
        return captured.report

    def _on_device(self, entries: tuple[int, ...]) -> Tensor:
        return torch.tensor(entries, device=self._engine.spec.device)

    def _keep(self, bucket: Bucket, captured: _Captured) -> None:
        """The graph used last stands last; beyond MOST_GRAPHS the one unused for longest goes, as if never used."""
        self._graphs[bucket] = captured
        if len(self._graphs) > MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]

    def _step_and_capture(self, bucket: Bucket, entries: tuple[int, ...]) -> Tensor:
        """Run the step on a copy of the state, capture it, replay it, and compare."""
        copy = self._state.clone()
        slots = self._on_device(entries)
        expected = run_bucket(self._engine, copy, slots, bucket).cpu()
        try:
            captured = self._capture(bucket, slots, entries)
            captured.graph.replay()
            self.stream.synchronize()
        except RuntimeError as error:
            return self._give_up(copy, expected, f"bucket {bucket} could not be captured: {error}")
        if not (torch.equal(captured.report, expected) and _same(self._state.progress, copy.progress)):
            return self._give_up(copy, expected, f"the graph of bucket {bucket} differs from the step it was made from")
        self._keep(bucket, captured)
        return captured.report

    def _capture(self, bucket: Bucket, slots: Tensor, entries: tuple[int, ...]) -> _Captured:
        report = torch.zeros(bucket.batch, 5, dtype=torch.int64).pin_memory()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
            report.copy_(run_bucket(self._engine, self._state, slots, bucket), non_blocking=True)
        return _Captured(graph, slots, entries, report)

    def _give_up(self, stepped: DecodingState, report: Tensor, reason: str) -> Tensor:
        """Go on without graphs from a state that was stepped without one."""
        _LOG.warning("CUDA graphs are off: %s", reason)
        self.enabled = False
        self._graphs.clear()
        for item in fields(Progress):
            getattr(self._state.progress, item.name).copy_(getattr(stepped.progress, item.name))
        return report


def _same(one: Progress, other: Progress) -> bool:
    return all(torch.equal(getattr(one, item.name), getattr(other, item.name)) for item in fields(Progress))


def graph_runner(engine: Engine, state: DecodingState, cuda_graphs: str | None) -> GraphRunner | None:
    """A runner for an engine that can be captured; None for one whose steps the host takes part in."""
    spec = engine.spec
    if not spec.graph_capturable:
        return None
    policy = choose_policy(cuda_graphs, torch.cuda.get_device_capability(spec.device))
    tokens = sizes_for(engine, token_sizes(spec.max_num_tokens))
    buckets = Buckets(batch_sizes(spec.max_batch_size), tokens, largest_batch=policy == "largest")
    return GraphRunner(engine, state, buckets, enabled=policy != "off")
