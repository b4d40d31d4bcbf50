"""Decoder: the requests in the slots of one engine, and the steps that advance them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from d3llm_trt.errors import EngineError
from d3llm_trt.progress import OnProgress
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.decoding.step import SlotReport, first_pass
from d3llm_trt.runtime.stepping.stepper import Occupant, Stepper


class Decoder:
    """Requests enter and leave slots between steps; all slots named in a step advance by one pass."""

    def __init__(self, stepper: Stepper) -> None:
        self.spec = stepper.engine.spec
        self._stepper = stepper
        self._occupants: dict[int, Occupant] = {}

    def admit(self, slot: int, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Put a request that fits the engine into a slot. Raises RequestError if its settings do not fit each other."""
        # Planned on the host, so that admission does not wait for the device.
        settings, progress = first_pass(self.spec.model_config, prompt_token_ids, params)
        with self._stepper.on_stream():
            self._stepper.state.admit(slot, settings, progress)
        self._occupants[slot] = Occupant.entering(slot, params, progress)

    def warm_up(self, progress: OnProgress | None = None) -> None:
        """Prepare steps that requests will probably need; no request may be in a slot.

        The engine is closed if that raises anything. Raises EngineError if the GPU's memory is full.
        """
        try:
            self._stepper.warm_up(progress)
        except BaseException as error:
            self.close()
            if isinstance(error, torch.OutOfMemoryError):
                raise engine_failure(error) from error
            raise

    def step(self, slots: Sequence[int]) -> list[SlotReport]:
        """One pass for the requests in ``slots``."""
        occupants = [self._occupants[slot] for slot in slots]
        reports = self._stepper.step(occupants)
        for occupant, report in zip(occupants, reports, strict=True):
            self._occupants[occupant.slot] = replace(occupant, report=report)
        return reports

    @property
    def reports(self) -> Mapping[int, SlotReport]:
        """The report of the last pass of each request, by slot."""
        return {slot: occupant.report for slot, occupant in self._occupants.items()}

    def read(self, slots: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        """The canvas of each slot, and the pass that committed each of its positions; waits for the device."""
        if not slots:
            return []
        progress, lengths = self._stepper.state.progress, [self._occupants[slot].length for slot in slots]
        with self._stepper.on_stream():
            rows = torch.tensor(slots, device=progress.canvas.device)
            width = max(lengths)
            canvases, steps = torch.stack((progress.canvas[rows, :width], progress.commit_steps[rows, :width])).cpu()
        return [(canvases[row, :length].tolist(), steps[row, :length].tolist()) for row, length in enumerate(lengths)]

    def read_logprobs(self, slots: Sequence[int]) -> list[list[float]]:
        """The log probability (nats) with which each position of each slot was committed; waits for the device."""
        if not slots:
            return []
        logprobs, lengths = self._stepper.state.progress.logprobs, [self._occupants[slot].length for slot in slots]
        with self._stepper.on_stream():
            rows = logprobs[torch.tensor(slots, device=logprobs.device), : max(lengths)].tolist()
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]

    def close(self) -> None:
        """The engine is not used any more."""
        self._stepper.engine.close()


def engine_failure(error: BaseException) -> EngineError:
    """The error of the requests that an engine ran when it raised ``error``."""
    return EngineError(f"the engine failed: {type(error).__name__}: {error}")
