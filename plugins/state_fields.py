"""The decoding state of all slots: its fields, each declared once, in the order of ``c_api/d3llm_kernels.h``."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Extent = Literal["slot", "end", "position", "block"]
END_IDS = 8  # that a request has at most
INT64, FLOAT32, FLOAT64, BOOL = (
    {"dtype": dtype, "per": "slot"} for dtype in (torch.int64, torch.float32, torch.float64, torch.bool)
)
BY_END, BY_POSITION, BY_BLOCK = {"per": "end"}, {"per": "position"}, {"per": "block"}


@dataclass(frozen=True)
class RequestSettings:
    """The settings of each request, ``[B]`` each, which do not change while it is decoded.

    ``algorithm`` indexes ``ALGORITHMS``. ``end_ids[B, 8]`` end the answer, NO_TOKEN behind the last of them; ``eos_id``
    fills what is behind its end, and is NO_TOKEN without early stop; none of the end ids stands in the first
    ``min_tokens`` positions. ``threshold`` is infinite where there is none; ``steps_per_block`` is 0 for one token per
    pass; ``refresh_interval`` is 0 for never, ``window_ahead`` negative where windows run to the end, ``top_k`` 0 and
    ``top_p`` 1 for no limit.
    """

    algorithm: Tensor = field(metadata=INT64)
    prompt_length: Tensor = field(metadata=INT64)
    length: Tensor = field(metadata=INT64)
    block_size: Tensor = field(metadata=INT64)
    num_blocks: Tensor = field(metadata=INT64)
    eos_id: Tensor = field(metadata=INT64)
    end_ids: Tensor = field(metadata=INT64 | BY_END)
    min_tokens: Tensor = field(metadata=INT64)
    threshold: Tensor = field(metadata=FLOAT32)
    by_quota: Tensor = field(metadata=BOOL)
    entropy_eps: Tensor = field(metadata=FLOAT32)
    block_add_threshold: Tensor = field(metadata=FLOAT64)
    decoded_token_threshold: Tensor = field(metadata=FLOAT64)
    cached: Tensor = field(metadata=BOOL)
    cache_delay: Tensor = field(metadata=INT64)
    refresh_interval: Tensor = field(metadata=INT64)
    full_settling: Tensor = field(metadata=BOOL)
    window_ahead: Tensor = field(metadata=INT64)
    published_shift: Tensor = field(metadata=BOOL)
    steps_per_block: Tensor = field(metadata=INT64)
    temperature: Tensor = field(metadata=FLOAT32)
    top_k: Tensor = field(metadata=INT64)
    top_p: Tensor = field(metadata=FLOAT64)
    seed: Tensor = field(metadata=INT64)


@dataclass(frozen=True)
class RequestProgress:
    """How far each request is, and its next pass.

    ``canvas``, ``commit_steps``, ``logprobs`` and ``candidates`` are ``[B, L]``: ids, the pass that committed each of
    them, its log probability there (nats, at temperature 1), and what the next pass may commit. ``active``,
    ``block_cached`` and ``done_pass`` are ``[B, L + 1]`` by block, the prompt being block 0 and no block shorter than
    one position, but for the one of an empty answer. The rest is ``[B]``: ``opened`` generated blocks of which the
    current one was opened after ``opened_pass`` passes; the next pass computes positions
    ``[window_start, window_end)``, which attend to ``[0, live_length)``; K/V of ``[0, cache_length)`` stay valid.
    """

    canvas: Tensor = field(metadata=INT64 | BY_POSITION)
    commit_steps: Tensor = field(metadata=INT64 | BY_POSITION)
    logprobs: Tensor = field(metadata=FLOAT32 | BY_POSITION)
    candidates: Tensor = field(metadata=BOOL | BY_POSITION)
    active: Tensor = field(metadata=BOOL | BY_BLOCK)
    block_cached: Tensor = field(metadata=BOOL | BY_BLOCK)
    done_pass: Tensor = field(metadata=INT64 | BY_BLOCK)
    opened: Tensor = field(metadata=INT64)
    opened_pass: Tensor = field(metadata=INT64)
    window_start: Tensor = field(metadata=INT64)
    window_end: Tensor = field(metadata=INT64)
    live_length: Tensor = field(metadata=INT64)
    cache_length: Tensor = field(metadata=INT64)
    passes: Tensor = field(metadata=INT64)
    done: Tensor = field(metadata=BOOL)
    failed: Tensor = field(metadata=BOOL)


def dtype_of(item: Field[Any]) -> torch.dtype:
    """The dtype of one field of either class."""
    dtype: torch.dtype = item.metadata["dtype"]
    return dtype


def extent_of(item: Field[Any]) -> Extent:
    """What one field of either class has a value for in each slot: its end ids, positions, blocks or itself."""
    extent: Extent = item.metadata["per"]
    return extent


def shape_of(item: Field[Any], num_slots: int, max_seq_len: int) -> tuple[int, ...]:
    """The shape of one field of either class in the state of all slots."""
    widths = {"slot": (), "end": (END_IDS,), "position": (max_seq_len,), "block": (max_seq_len + 1,)}
    return (num_slots, *widths[extent_of(item)])
