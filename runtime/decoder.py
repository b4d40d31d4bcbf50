"""Decoder: the slots of one engine, and the steps that advance them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt.progress import OnProgress
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.decoding.state import DecodingState, new_request
from d3llm_trt.runtime.decoding.step import SlotReport, StepShape, plan_pass, read_report, report, run_step
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.stepping.device_step import Bucket
from d3llm_trt.runtime.stepping.graphs import graph_runner


@dataclass(frozen=True)
class _Occupant:
    """What the host knows of a request for as long as it is in a slot."""

    length: int
    blocks: int
    algorithm: str
    sampling: bool


class Decoder:
    """Requests enter and leave slots between steps; all slots named in a step advance by one pass.

    ``cuda_graphs``: ``all``, ``largest`` or ``off``, by default what the engine and the GPU can.
    """

    def __init__(self, engine: Engine, cuda_graphs: str | None = None) -> None:
        spec = engine.spec
        self._engine = engine
        self.state = DecodingState.empty(spec.max_batch_size, spec.max_seq_len, spec.device)
        self.runner = graph_runner(engine, self.state, cuda_graphs)
        self._occupants: dict[int, _Occupant] = {}
        self.reports: dict[int, SlotReport] = {}

    def admit(self, slot: int, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Put a request that fits the engine into a slot. Raises RequestError if its settings do not fit each other."""
        config, algorithm = self._engine.spec.model_config, params.decoding.algorithm
        settings, progress = new_request(config, prompt_token_ids, params)
        # Planned on the host, so that admission does not wait for the device.
        progress = plan_pass(config, (algorithm,), settings, progress)
        with self._on_stream():
            self.state.admit(slot, settings, progress)
        length, blocks = progress.canvas.shape[1], progress.active.shape[1]
        self._occupants[slot] = _Occupant(length, blocks, algorithm, params.temperature > 0)
        self.reports[slot] = read_report(report(progress))[0]

    def warm_up(self, progress: OnProgress | None = None) -> None:
        """Capture what requests will probably need, by steps of a request made up for each; none may be in a slot.

        ``progress`` is called as ``progress("capture", done, total)``.
        """
        if self.runner is None:
            return
        defaults = self.runner.defaults
        for done, bucket in enumerate(defaults, start=1):
            self._admit_for(bucket)
            self.note([0], self.runner.run([0], bucket.tokens, bucket.rows, capture=True))
            if not self.runner.enabled:
                return
            if progress is not None:
                progress("capture", done, len(defaults))

    def _admit_for(self, bucket: Bucket) -> None:
        """A request whose first pass fills a bucket, into slot 0."""
        spec, config = self._engine.spec, self._engine.spec.model_config
        length = min(bucket.tokens, spec.max_seq_len)
        generated = min(bucket.rows, length - 1)
        ids = [token for token in range(min(config.vocab_size, length + 1)) if token != config.mask_token_id]
        prompt = [ids[index % len(ids)] for index in range(length - generated)]
        decoding = DecodingConfig(block_size=generated, threshold=0.0)
        self.admit(0, prompt, SamplingParams(max_tokens=generated, decoding=decoding))

    def step(self, slots: Sequence[int]) -> list[SlotReport]:
        """One pass for the requests in ``slots``."""
        if self.runner is not None:
            used = [self.reports[slot] for slot in slots]
            tokens, rows = sum(report.window_tokens for report in used), sum(report.candidates for report in used)
            return self.note(slots, self.runner.run(slots, tokens, rows))
        where = torch.tensor(slots, device=self._engine.spec.device)
        return self.note(slots, run_step(self._engine, self.state, where, self.shape(slots)))

    def note(self, slots: Sequence[int], report: Tensor) -> list[SlotReport]:
        """Read the report of a pass for ``slots``; waits for the device."""
        reports = read_report(report)
        self.reports.update(zip(slots, reports, strict=True))
        return reports

    def shape(self, slots: Sequence[int]) -> StepShape:
        """The sizes of the next pass for ``slots``."""
        occupants, reports = [self._occupants[slot] for slot in slots], [self.reports[slot] for slot in slots]
        return StepShape(
            width=max(occupant.length for occupant in occupants),
            blocks=max(occupant.blocks for occupant in occupants),
            tokens=sum(report.window_tokens for report in reports),
            rows=sum(report.candidates for report in reports),
            algorithms=tuple(sorted({occupant.algorithm for occupant in occupants})),
            sampling=any(occupant.sampling for occupant in occupants),
        )

    def read(self, slot: int) -> tuple[list[int], list[int]]:
        """The canvas of a slot and the pass that committed each position; waits for the device."""
        progress, length = self.state.progress, self._occupants[slot].length
        with self._on_stream():
            return progress.canvas[slot, :length].tolist(), progress.commit_steps[slot, :length].tolist()

    def _on_stream(self) -> AbstractContextManager[object]:
        """What touches the state of a runner is queued behind its steps."""
        return nullcontext() if self.runner is None else torch.cuda.stream(self.runner.stream)
