"""Windows: which positions a pass computes, where others keep the keys and values of earlier passes (spec B.4 to B.8a).

Every pass writes the K/V of its window, so to cache a block is to start later windows behind it, and to leave far masks
out is to end them earlier. Our clean version of the published decoders: the cache is always cut at its logical length.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from d3llm_trt.model.config import Family
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.runtime.decoding.blocks import Blocks
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.decoding.state import NO_PASS


def plan_window(
    family: Family, settings: RequestSettings, before: RequestProgress, progress: RequestProgress, blocks: Blocks
) -> RequestProgress:
    """Choose the window of MultiBlock's next pass; rows of other algorithms keep theirs.

    ``before`` still has the blocks that were open in the last pass.
    """
    number = progress.passes + 1
    length = progress.cache_length
    progress = _retire_behind_eos(family, number, before, progress, blocks)
    done_pass, ready = _scan(family, settings, progress, blocks, number)
    grown = torch.where(ready, blocks.end, 0).amax(1).clamp(min=0)
    grows = settings.cached & (grown > length)
    block_cached = progress.block_cached | ready
    opened = blocks.numbers <= progress.opened[:, None]
    settling = (opened & (blocks.masks == 0) & (done_pass != NO_PASS) & ~block_cached).any(1)
    interval = settings.refresh_interval
    refresh = (interval > 0) & (number % interval.clamp(min=1) == 0)
    full = (number == 1) | (~grows & (refresh | (settling & settings.cached & settings.full_settling)))
    mine = settings.algorithm == ALGORITHMS.index("MultiBlock")
    return replace(
        progress,
        block_cached=torch.where(mine[:, None], block_cached, before.block_cached),
        done_pass=torch.where(mine[:, None], done_pass, before.done_pass),
        window_start=torch.where(mine, _start(family, settings, length, full), before.window_start),
        window_end=torch.where(mine, _end(settings, progress, blocks, full), progress.window_end),
        cache_length=torch.where(mine & grows, grown, length),
    )


def _start(family: Family, settings: RequestSettings, length: Tensor, full: Tensor) -> Tensor:
    """Where windows start that reuse ``length[B]`` positions: Dream's row before scores the first of them."""
    earlier = (length > 0) & ~settings.published_shift if family == "dream" else torch.zeros_like(full)
    return torch.where(full, 0, length - earlier.long())


def _end(settings: RequestSettings, progress: RequestProgress, blocks: Blocks, full: Tensor) -> Tensor:
    """Where windows end that leave out what is far behind the last opened block."""
    ahead = settings.window_ahead.clamp(max=settings.length.amax()) * settings.block_size
    near = torch.minimum(blocks.end_of(progress.opened) + ahead, settings.length)
    return torch.where(full | (settings.window_ahead < 0), settings.length, near)


def _retire_behind_eos(
    family: Family, number: Tensor, before: RequestProgress, progress: RequestProgress, blocks: Blocks
) -> RequestProgress:
    """Blocks behind an EOS count as cached: LLaDA's only if they were not open yet, Dream's all."""
    behind = blocks.previous(blocks.end) > blocks.first_eos[:, None]
    behind &= (blocks.numbers > 0) & (blocks.numbers <= progress.opened[:, None])
    if family == "llada":
        behind &= blocks.numbers > before.opened[:, None]
    return replace(
        progress,
        block_cached=progress.block_cached | behind,
        done_pass=torch.where(behind & (progress.done_pass == NO_PASS), number[:, None], progress.done_pass),
    )


def _scan(
    family: Family, settings: RequestSettings, progress: RequestProgress, blocks: Blocks, number: Tensor
) -> tuple[Tensor, Tensor]:
    """Passes in which blocks were found finished, and blocks old enough to be cached now: ``[B, K]`` each.

    Blocks are looked at in order up to the first unfinished one; LLaDA also stops at the first that is too young.
    """
    inside = blocks.end <= progress.cache_length[:, None]
    finished = (blocks.masks == 0) & (blocks.numbers <= progress.opened[:, None])
    seen = _leading(finished | inside) & ~inside
    known = torch.where(progress.done_pass == NO_PASS, number[:, None], progress.done_pass)
    old = number[:, None] - known >= settings.cache_delay[:, None]
    if family == "llada":
        no_young_before = _leading(~(seen & ~old))
        seen &= torch.cat((torch.ones_like(seen[:, :1]), no_young_before[:, :-1]), dim=1)
    done_pass = torch.where(seen, known, progress.done_pass)
    return done_pass, seen & old & ~progress.block_cached


def _leading(flags: Tensor) -> Tensor:
    """True up to the first False of each row."""
    return flags.int().cumprod(1).bool()
