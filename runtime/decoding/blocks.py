"""Counts per block of a canvas, and the picks that every algorithm shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt.plugins.state_fields import RequestSettings


@dataclass(frozen=True)
class Blocks:
    """Counted afresh before every pass. Block 0 is the prompt; blocks behind the last one are empty.

    ``of_position[B, W]`` is each position's block (K behind the canvas's end); ``masks``, ``end`` and the float64
    ``progress`` are ``[B, K]``; ``masked[B, W]`` are the masked positions; ``first_eos[B]`` is the first generated
    EOS, which is any of a request's end ids, or W if there is none.
    """

    of_position: Tensor
    masks: Tensor
    end: Tensor
    progress: Tensor
    masked: Tensor
    first_eos: Tensor

    @property
    def numbers(self) -> Tensor:
        """``[K]``: 0, 1, ..."""
        return torch.arange(self.masks.shape[1], device=self.masks.device)

    @property
    def positions(self) -> Tensor:
        """``[W]``: 0, 1, ..."""
        return torch.arange(self.masked.shape[1], device=self.masked.device)

    @property
    def has_eos(self) -> Tensor:
        """``[B]``: whether the answer has an EOS that ends it."""
        return self.first_eos < self.masked.shape[1]

    def previous(self, values: Tensor) -> Tensor:
        """The ``values[B, K]`` of the block before each block; the prompt has its own."""
        return torch.cat((values[:, :1], values[:, :-1]), dim=1)

    def end_of(self, block: Tensor) -> Tensor:
        """End position of one block per request: ``block[B]`` -> ``[B]``."""
        return self.end.gather(1, block[:, None])[:, 0]


def first_eos(settings: RequestSettings, canvas: Tensor) -> Tensor:
    """Position of the first generated EOS that ends the answer, or W if there is none: ``[B]`` of ``canvas[B, W]``."""
    at = torch.arange(canvas.shape[1], device=canvas.device)
    generated = (at >= settings.prompt_length[:, None]) & (at < settings.length[:, None])
    ends = (canvas[:, :, None] == settings.end_ids[:, None]).any(2) & (settings.eos_id[:, None] >= 0)
    return torch.where(generated & ends, at, canvas.shape[1]).amin(1)


def count_blocks(settings: RequestSettings, canvas: Tensor, count: int, mask_id: int) -> Blocks:
    """Count masks in the prompt and in ``count - 1`` generated blocks of ``canvas[B, W]``.

    ``progress`` is ``1 - masks / size`` in float64 exactly like that (spec B, "progress").
    """
    at = torch.arange(canvas.shape[1], device=canvas.device)
    start, size = settings.prompt_length[:, None], settings.block_size[:, None]
    inside = at < settings.length[:, None]
    of_position = torch.where(at < start, 0, torch.div(at - start, size, rounding_mode="floor") + 1)
    of_position = torch.where(inside, of_position, count).clamp(max=count)
    numbers = torch.arange(count, device=canvas.device)
    end = torch.minimum(start + numbers * size, settings.length[:, None])
    masked = inside & (canvas == mask_id)
    masks = _sums(masked, of_position, count)
    sizes = _sums(inside, of_position, count)
    progress = 1 - masks.double() / sizes.clamp(min=1).double()
    return Blocks(of_position, masks, end, progress, masked, first_eos(settings, canvas))


def _sums(values: Tensor, of_position: Tensor, count: int) -> Tensor:
    sums = torch.zeros(len(values), count + 1, dtype=torch.int64, device=values.device)
    return sums.scatter_add_(1, of_position, values.long())[:, :count]


def last_reachable_end(blocks: Blocks, opened: Tensor, active: Tensor) -> Tensor:
    """End of the last opened generated block that is active or has masks, ``[B]``; 0 if there is none."""
    numbers = blocks.numbers
    reachable = (numbers > 0) & (numbers <= opened[:, None]) & (active | (blocks.masks > 0))
    return torch.where(reachable, blocks.end, 0).amax(1)


def lowest(values: Tensor, among: Tensor) -> Tensor:
    """The position of the lowest value ``among[B, W]`` per request, the first of equals, as a mask ``[B, W]``."""
    best = values.masked_fill(~among, torch.inf).argmin(1, keepdim=True)
    return torch.zeros_like(among).scatter(1, best, True) & among


def forced(blocks: Blocks, active: Tensor, entropy: Tensor, candidates: Tensor, accepted: Tensor) -> Tensor:
    """The lowest-entropy candidate of the first active block with masks, if none there is accepted: ``[B, W]``.

    Once no generated block waits, the prompt's masks (infilling) are forced the same way, so every pass commits.
    """
    waiting = active & (blocks.masks > 0) & (blocks.numbers > 0)
    first = torch.where(waiting.any(1), waiting.int().argmax(1), 0)
    inside = candidates & (blocks.of_position == first[:, None])
    needed = ~(accepted & inside).any(1, keepdim=True)
    return lowest(entropy, inside & needed)
