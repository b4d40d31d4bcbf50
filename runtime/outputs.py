"""What a request gives back: RequestOutput and its parts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from d3llm_trt.errors import D3llmError


@dataclass(frozen=True)
class CompletionOutput:
    """A generated answer, or its committed prefix while streaming.

    ``token_ids`` ends with the EOS id if the answer reached it; ``text`` leaves special tokens out.
    ``commit_steps[i]`` is the forward pass (1-based) that committed ``token_ids[i]``.
    ``finish_reason`` is ``"stop"`` (an end id, a stop string or a stop id), ``"length"``, ``"error"``, or None while
    running; ``stop_reason`` is the stop string or stop id that ended it, None for the checkpoint's own end. ``seed`` is
    the one that tokens were sampled with. ``logprobs[i]``, where they were asked for, is the log probability (nats, at
    temperature 1) of ``token_ids[i]`` in the pass that committed it, and ``cumulative_logprob`` their sum.
    """

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    commit_steps: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    seed: int | None = None
    logprobs: list[float] | None = None
    cumulative_logprob: float | None = None


@dataclass(frozen=True)
class RequestMetrics:
    """Counts and times (seconds) of one request. ``tokens_per_forward`` counts tokens before EOS."""

    num_forward_passes: int = 0
    tokens_per_forward: float = 0.0
    time_to_first_token: float | None = None
    latency: float = 0.0


@dataclass(frozen=True)
class Canvas:
    """All positions of a request at one moment: prompt and answer.

    ``commit_steps[p]`` is the pass that committed position p: -1 for given tokens, 0 where still masked.
    """

    token_ids: list[int]
    commit_steps: list[int]
    prompt_length: int


@dataclass(frozen=True)
class RequestOutput:
    """One request's result. A request that failed has ``error`` set and ``finish_reason == "error"``.

    ``prompt_token_ids`` has masks inside the prompt filled in once ``finished``.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    error: D3llmError | None = None
    canvas: Canvas | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; ``error`` is its message."""
        return {**asdict(replace(self, error=None)), "error": None if self.error is None else str(self.error)}
