"""What makes the passes of a decoder: the Stepper protocol, and what it is told of each request."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from d3llm_trt.plugins.state_fields import RequestProgress
from d3llm_trt.progress import OnProgress
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.decoding.state import DecodingState
from d3llm_trt.runtime.decoding.step import SlotReport, read_summary, summarize
from d3llm_trt.runtime.engines.base import Engine


@dataclass(frozen=True)
class Occupant:
    """What the host knows of the request in a slot.

    Args:
        slot: its place in the state.
        params: its settings.
        length: positions of its canvas.
        blocks: its blocks, the prompt included.
        report: what its last pass gave, with the size of its next one.
    """

    slot: int
    params: SamplingParams
    length: int
    blocks: int
    report: SlotReport

    @classmethod
    def entering(cls, slot: int, params: SamplingParams, progress: RequestProgress) -> Occupant:
        """A request before its first pass; ``progress`` is its one row, on the CPU."""
        (report,) = read_summary(summarize(progress))
        return cls(slot, params, progress.canvas.shape[1], progress.active.shape[1], report)


class Stepper(Protocol):
    """Makes passes over an engine and the decoding state of all its slots, both of which it owns."""

    @property
    def engine(self) -> Engine:
        """What runs the network."""

    @property
    def state(self) -> DecodingState:
        """The state of all slots, to be changed inside :meth:`on_stream` only."""

    def warm_up(self, progress: OnProgress | None = None) -> None:
        """Prepare what requests will probably need; no request may be in a slot.

        ``progress`` is called as ``progress("capture", done, total)``.
        """

    def step(self, occupants: Sequence[Occupant]) -> list[SlotReport]:
        """One pass for these requests; waits for it."""

    def on_stream(self) -> AbstractContextManager[object]:
        """What is done inside is queued behind the steps."""
