"""Steps by kernels on a stream of their own, padded to buckets and captured as CUDA graphs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.progress import OnProgress
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.decoding.state import DecodingState
from d3llm_trt.runtime.decoding.step import SlotReport, StepSizes, first_pass, read_summary
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.stepping.buckets import Buckets
from d3llm_trt.runtime.stepping.graphs import StepGraphs
from d3llm_trt.runtime.stepping.stepper import Occupant

_LOG = logging.getLogger(__name__)


class KernelStepper:
    """A Stepper for an engine that can run inside a captured CUDA graph.

    Args:
        engine: on a GPU, and able to run inside a captured graph.
        buckets: the sizes that steps are padded to.
        graphs: False runs every step without a graph.
    """

    def __init__(self, engine: Engine, buckets: Buckets, graphs: bool = True) -> None:
        self.spec = engine.spec
        self.state = DecodingState.empty(self.spec.max_batch_size, self.spec.max_seq_len, self.spec.device)
        self.engine, self._buckets = engine, buckets
        self._graphs = StepGraphs(engine, self.state, graphs)
        self._stream = torch.cuda.Stream(self.spec.device)  # type: ignore[no-untyped-call]
        # Weights, caches and state may still be on their way there.
        self._stream.wait_stream(torch.cuda.current_stream(self.spec.device))

    @property
    def captured(self) -> tuple[StepSizes, ...]:
        """The buckets that have a graph."""
        return self._graphs.captured

    @property
    def defaults(self) -> tuple[StepSizes, ...]:
        """The buckets that are captured before there are requests; none without graphs."""
        return self._buckets.defaults(self.spec.max_seq_len) if self._graphs.enabled else ()

    def warm_up(self, progress: OnProgress | None = None) -> None:
        """Capture the default buckets, each by a step of a request made up for it."""
        defaults = self.defaults
        for done, bucket in enumerate(defaults, start=1):
            with self.on_stream():
                self.state.admit(0, *_filling(self.spec.model_config, bucket, self.spec.max_seq_len))
            self._run(bucket, [0], capture=True)
            if not self._graphs.enabled:
                return
            if progress is not None:
                progress("capture", done, len(defaults))
        if defaults:
            _LOG.info("captured %d steps as CUDA graphs, the largest of %s", len(defaults), defaults[0])

    def step(self, occupants: Sequence[Occupant]) -> list[SlotReport]:
        """One pass for these requests, in the smallest bucket that holds them; waits for it."""
        reports = [occupant.report for occupant in occupants]
        tokens, rows = sum(report.window_tokens for report in reports), sum(report.candidates for report in reports)
        bucket = self._buckets.at_least(len(occupants), tokens, rows)
        return read_summary(self._run(bucket, [occupant.slot for occupant in occupants]))

    def on_stream(self) -> AbstractContextManager[object]:
        """What is done inside is queued behind the steps."""
        return torch.cuda.stream(self._stream)

    def _run(self, bucket: StepSizes, slots: Sequence[int], capture: bool = False) -> Tensor:
        """The summary ``[B, 5]`` of a pass for ``slots``, on the host; entries beside them name no slot."""
        entries = (*slots, *[self.spec.max_batch_size] * (bucket.batch - len(slots)))
        with self.on_stream():
            summary = self._graphs.run(bucket, entries, capture)
        self._stream.synchronize()
        return summary[: len(slots)]


def _filling(config: ModelConfig, bucket: StepSizes, longest: int) -> tuple[RequestSettings, RequestProgress]:
    """A request whose first pass fills a bucket of batch 1."""
    length = min(bucket.tokens, longest)
    generated = min(bucket.rows, length - 1)
    ids = [token for token in range(min(config.vocab_size, length + 1)) if token != config.mask_token_id]
    prompt = [ids[index % len(ids)] for index in range(length - generated)]
    params = SamplingParams(generated, decoding=DecodingConfig(block_size=generated, threshold=0.0))
    return first_pass(config, prompt, params)
