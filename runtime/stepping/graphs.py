"""Steps as CUDA graphs: one per bucket, captured ahead or at its second use, checked against the step it is made of."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from d3llm_trt.plugins.decoding_state import BoundState
from d3llm_trt.runtime.decoding.state import DecodingState
from d3llm_trt.runtime.decoding.step import StepSizes
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.stepping.kernel_step import kernel_step

MOST_GRAPHS = 256
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Captured:
    """A graph, the slots it reads and what they hold now, and where its summary goes on the host."""

    graph: torch.cuda.CUDAGraph
    slots: Tensor
    entries: tuple[int, ...]
    summary: Tensor


class StepGraphs:
    """Runs steps on the current stream, through a graph where their bucket has one.

    Args:
        engine: on a GPU, and able to run inside a captured graph.
        state: the state of all its slots; graphs keep its addresses.
        enabled: False runs every step without a graph, as after a capture that failed.
    """

    def __init__(self, engine: Engine, state: DecodingState, enabled: bool) -> None:
        self.enabled = enabled
        self._engine, self._state = engine, state
        self._bound = BoundState(state.settings, state.progress)
        self._graphs: dict[StepSizes, _Captured] = {}
        self._used_once: set[StepSizes] = set()  # without a graph
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def captured(self) -> tuple[StepSizes, ...]:
        """The buckets that have a graph."""
        return tuple(sorted(self._graphs))

    def run(self, bucket: StepSizes, entries: tuple[int, ...], capture: bool) -> Tensor:
        """One pass for the slots in ``entries``; its summary ``[batch, 5]`` is being copied to the host.

        A bucket that has no graph gets one at its second use, or with ``capture`` at its first: many are used once.
        """
        captured = self._graphs.pop(bucket, None)
        if captured is not None:
            return self._replay(bucket, captured, entries)
        if self.enabled and (capture or bucket in self._used_once):
            self._used_once.discard(bucket)
            return self._step_and_capture(bucket, entries)
        self._used_once.add(bucket)
        return kernel_step(self._engine, self._bound, self._on_device(entries), bucket).cpu()

    def _replay(self, bucket: StepSizes, captured: _Captured, entries: tuple[int, ...]) -> Tensor:
        if captured.entries != entries:
            captured.slots.copy_(torch.tensor(entries))
            captured = replace(captured, entries=entries)
        self._keep(bucket, captured)
        captured.graph.replay()
        return captured.summary

    def _on_device(self, entries: tuple[int, ...]) -> Tensor:
        return torch.tensor(entries, device=self._engine.spec.device)

    def _keep(self, bucket: StepSizes, captured: _Captured) -> None:
        """The graph used last stands last; beyond MOST_GRAPHS the one unused for longest goes, as if never used."""
        self._graphs[bucket] = captured
        if len(self._graphs) > MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]

    def _step_and_capture(self, bucket: StepSizes, entries: tuple[int, ...]) -> Tensor:
        """Run the step on a copy of the state, capture it, replay it, and compare."""
        copy = self._state.clone()
        slots = self._on_device(entries)
        expected = kernel_step(self._engine, BoundState(copy.settings, copy.progress), slots, bucket).cpu()
        try:
            captured = self._capture(bucket, slots, entries)
            captured.graph.replay()
            torch.cuda.current_stream().synchronize()
        except RuntimeError as error:
            return self._give_up(copy, expected, f"bucket {bucket} could not be captured: {error}")
        if not (torch.equal(captured.summary, expected) and self._state.same_progress(copy)):
            return self._give_up(copy, expected, f"the graph of bucket {bucket} differs from the step it was made from")
        self._keep(bucket, captured)
        _LOG.debug("captured the step of %s as a CUDA graph", bucket)
        return captured.summary

    def _capture(self, bucket: StepSizes, slots: Tensor, entries: tuple[int, ...]) -> _Captured:
        summary = torch.zeros(bucket.batch, 5, dtype=torch.int64).pin_memory()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            summary.copy_(kernel_step(self._engine, self._bound, slots, bucket), non_blocking=True)
        return _Captured(graph, slots, entries, summary)

    def _give_up(self, stepped: DecodingState, summary: Tensor, reason: str) -> Tensor:
        """Go on without graphs from a state that was stepped without one."""
        _LOG.warning("CUDA graphs are off: %s", reason)
        self.enabled = False
        self._graphs.clear()
        self._state.restore(stepped)
        return summary
