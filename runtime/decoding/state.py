"""The decoding state of all slots, on the device: one row per slot, read and written by tensor code only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from d3llm_trt.errors import RequestError
from d3llm_trt.model.config import Family, ModelConfig
from d3llm_trt.plugins.reference import COARSE_EPS, FINE_EPS
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams

NO_TOKEN = -1  # matches no id on a canvas
NO_PASS = -1
GIVEN, MASKED = -1, 0  # in commit_steps; the number of a pass otherwise

Rows = TypeVar("Rows", "Settings", "Progress")


@dataclass(frozen=True)
class Settings:
    """What each request asked for, ``[B]`` each; does not change while it is decoded.

    ``algorithm`` indexes ``ALGORITHMS``; ``eos_id`` is NO_TOKEN without early stop; ``threshold`` is infinite where
    there is none; ``steps_per_block`` is 0 for one token per pass; ``refresh_interval`` is 0 for never.
    """

    algorithm: Tensor
    prompt_length: Tensor
    length: Tensor
    block_size: Tensor
    num_blocks: Tensor
    eos_id: Tensor
    threshold: Tensor
    by_quota: Tensor
    entropy_eps: Tensor
    block_add_threshold: Tensor
    decoded_token_threshold: Tensor
    cached: Tensor
    cache_delay: Tensor
    refresh_interval: Tensor
    steps_per_block: Tensor
    temperature: Tensor
    seed: Tensor


@dataclass(frozen=True)
class Progress:
    """How far each request is, and its next pass.

    ``canvas``, ``commit_steps`` and ``candidates`` are ``[B, L]``: ids, the pass that committed each of them, and what
    the next pass may commit. ``active``, ``block_cached`` and ``done_pass`` are ``[B, K]`` by block, the prompt being
    block 0. The rest is ``[B]``: ``opened`` generated blocks of which the current one was opened after
    ``opened_pass`` passes; the next pass computes positions ``[window_start, live_length)``; K/V of
    ``[0, cache_length)`` stay valid after it.
    """

    canvas: Tensor
    commit_steps: Tensor
    candidates: Tensor
    active: Tensor
    block_cached: Tensor
    done_pass: Tensor
    opened: Tensor
    opened_pass: Tensor
    window_start: Tensor
    live_length: Tensor
    cache_length: Tensor
    passes: Tensor
    done: Tensor
    failed: Tensor


_BY_POSITION = ("canvas", "commit_steps", "candidates")
_BY_BLOCK = ("active", "block_cached", "done_pass")


@dataclass(frozen=True)
class DecodingState:
    """Settings and progress of ``slots`` requests of up to ``max_seq_len`` positions."""

    settings: Settings
    progress: Progress

    @classmethod
    def empty(cls, slots: int, max_seq_len: int, device: torch.device) -> DecodingState:
        """All slots free."""
        settings, progress = _any_request()
        return cls(_expanded(settings, slots, max_seq_len, device), _expanded(progress, slots, max_seq_len, device))

    def clone(self) -> DecodingState:
        """A copy that does not change with this one."""
        settings = {item.name: getattr(self.settings, item.name).clone() for item in fields(Settings)}
        progress = {item.name: getattr(self.progress, item.name).clone() for item in fields(Progress)}
        return DecodingState(Settings(**settings), Progress(**progress))

    def take(self, slots: Tensor, width: int, blocks: int) -> tuple[Settings, Progress]:
        """Copies of the rows ``slots[B]``, of the first ``width`` positions and the first ``blocks`` blocks."""
        settings = Settings(**{item.name: getattr(self.settings, item.name)[slots] for item in fields(Settings)})
        progress = {name: view[slots] for name, view in self._views(width, blocks).items()}
        return settings, Progress(**progress)

    def put(self, slots: Tensor, progress: Progress) -> None:
        """Inverse of :meth:`take` for progress."""
        width, blocks = progress.canvas.shape[1], progress.active.shape[1]
        for name, view in self._views(width, blocks).items():
            view.index_copy_(0, slots, getattr(progress, name))

    def _views(self, width: int, blocks: int) -> dict[str, Tensor]:
        views = {item.name: getattr(self.progress, item.name) for item in fields(Progress)}
        cuts = {**dict.fromkeys(_BY_POSITION, width), **dict.fromkeys(_BY_BLOCK, blocks)}
        return views | {name: views[name][:, :cut] for name, cut in cuts.items()}

    def admit(self, slot: int, settings: Settings, progress: Progress) -> None:
        """Put a new request, one row as :func:`new_request` makes it, into a free slot."""
        for mine, new in ((self.settings, settings), (self.progress, progress)):
            for item in fields(mine):
                row, value = getattr(mine, item.name)[slot], getattr(new, item.name)[0]
                if value.ndim > 0:
                    # What a cancelled request left behind the end would be candidates beside a longer request.
                    row.zero_()
                    row = row[: len(value)]
                row.copy_(value)


def new_request(
    config: ModelConfig, prompt_token_ids: Sequence[int], params: SamplingParams
) -> tuple[Settings, Progress]:
    """One row of settings and progress on the CPU: the prompt, then ``max_tokens`` masks.

    Raises RequestError where settings do not fit each other or the length of the answer.
    """
    prompt, decoding, family = len(prompt_token_ids), params.decoding, config.family
    blocks = math.ceil(params.max_tokens / decoding.block_size)
    threshold = decoding.threshold_for(family)
    by_quota = decoding.algorithm == "LowConfidence" and threshold is None
    stops = decoding.early_stop and not params.ignore_eos
    end_id = config.eos_token_id if params.end_id is None else params.end_id
    settings = Settings(
        algorithm=_int(ALGORITHMS.index(decoding.algorithm)),
        prompt_length=_int(prompt),
        length=_int(prompt + params.max_tokens),
        block_size=_int(decoding.block_size),
        num_blocks=_int(blocks),
        eos_id=_int(end_id if stops else NO_TOKEN),
        threshold=_float(math.inf if threshold is None else threshold),
        by_quota=_bool(by_quota),
        entropy_eps=_float(_entropy_eps(decoding.algorithm, family)),
        block_add_threshold=_double(decoding.block_add_threshold),
        decoded_token_threshold=_double(decoding.decoded_token_threshold),
        cached=_bool(decoding.cache_delay_iter is not None),
        cache_delay=_int(decoding.cache_delay_iter or 0),
        refresh_interval=_int(decoding.refresh_interval or 0),
        steps_per_block=_int(_steps_per_block(params, blocks)),
        temperature=_float(params.temperature),
        seed=_int(params.seed),
    )
    return settings, _new_progress(config, prompt_token_ids, params.max_tokens, blocks)


def _entropy_eps(algorithm: str, family: Family) -> float:
    coarse = algorithm == "EntropyThreshold" or (algorithm == "LowConfidence" and family == "dream")
    return COARSE_EPS if coarse else FINE_EPS


def _steps_per_block(params: SamplingParams, blocks: int) -> int:
    steps = params.decoding.steps
    if steps is None:
        return 0
    if steps % blocks or steps > params.max_tokens:
        raise RequestError(
            f"steps is {steps}; allowed: multiples of {blocks}, the number of blocks, up to max_tokens, "
            f"{params.max_tokens}; choose another number, or another block_size"
        )
    return steps // blocks


def _new_progress(config: ModelConfig, prompt_token_ids: Sequence[int], max_tokens: int, blocks: int) -> Progress:
    canvas = torch.tensor([[*prompt_token_ids, *[config.mask_token_id] * max_tokens]], dtype=torch.int64)
    masked = canvas == config.mask_token_id
    prompt_is_whole = not bool(masked[:, : len(prompt_token_ids)].any())
    active = torch.zeros(1, blocks + 1, dtype=torch.bool)
    active[:, :2] = True
    done_pass = torch.full((1, blocks + 1), NO_PASS)
    done_pass[:, 0] = 0 if prompt_is_whole else NO_PASS
    return Progress(
        canvas=canvas,
        commit_steps=torch.where(masked, MASKED, GIVEN),
        candidates=torch.zeros_like(masked),
        active=active,
        block_cached=torch.zeros_like(active),
        done_pass=done_pass,
        opened=_int(1),
        opened_pass=_int(0),
        window_start=_int(0),
        live_length=_int(canvas.shape[1]),
        cache_length=_int(0),
        passes=_int(0),
        done=_bool(False),
        failed=_bool(False),
    )


def _any_request() -> tuple[Settings, Progress]:
    """One row, for its dtypes."""
    config = ModelConfig("llada", 2, 1, 1, 1, 1, 1, 1, 1e-5, 1.0, 2, 1, 0, 0)
    return new_request(config, [0], SamplingParams(max_tokens=1))


def _expanded(part: Rows, slots: int, max_seq_len: int, device: torch.device) -> Rows:
    """Zeros of the same dtypes for all slots; a block may be as short as one position."""
    widths = {**dict.fromkeys(_BY_POSITION, max_seq_len), **dict.fromkeys(_BY_BLOCK, max_seq_len + 1)}
    changes = {}
    for item in fields(part):
        shape = (slots, widths[item.name]) if item.name in widths else (slots,)
        changes[item.name] = torch.zeros(shape, dtype=getattr(part, item.name).dtype, device=device)
    return replace(part, **changes)


def _int(value: int) -> Tensor:
    return torch.tensor([value], dtype=torch.int64)


def _bool(value: bool) -> Tensor:
    return torch.tensor([value])


def _float(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float32)


def _double(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)
