"""LowConfidence: vanilla semi-autoregressive decoding, the most confident tokens first (spec B.6)."""

from __future__ import annotations

import torch
from torch import Tensor

from d3llm_trt.model.config import Family
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.runtime.decoding.algorithm import Choice, Opening, Scores
from d3llm_trt.runtime.decoding.blocks import Blocks, lowest


class LowConfidence:
    """A fixed number of tokens per pass, in one block at a time.

    With a threshold the rule is entropy's instead: the lowest, and all within the threshold. The last block may be
    short; masks left in the prompt are taken as one more part of the current block.
    """

    def open(self, settings: RequestSettings, progress: RequestProgress, blocks: Blocks) -> Opening:
        waiting = (blocks.masks > 0) & (blocks.numbers > 0)
        opened = torch.where(waiting.any(1), waiting.int().argmax(1), progress.opened)
        return Opening(opened, progress.active, blocks.end_of(opened), settings.length)

    def accept(
        self, family: Family, settings: RequestSettings, progress: RequestProgress, blocks: Blocks, scores: Scores
    ) -> Choice:
        candidates, threshold = progress.candidates, settings.threshold[:, None]
        certain = scores.entropy <= threshold if family == "llada" else scores.entropy < threshold
        by_entropy = (candidates & certain) | lowest(scores.entropy, candidates)
        confidence = scores.confidence.masked_fill(~candidates, -torch.inf)
        order = torch.argsort(confidence, dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, blocks.positions.expand_as(order))
        by_quota = candidates & (rank < _quota(settings, progress, blocks)[:, None])
        accepted = torch.where(settings.by_quota[:, None], by_quota, by_entropy)
        return Choice.of_sampled(accepted)


def _quota(settings: RequestSettings, progress: RequestProgress, blocks: Blocks) -> Tensor:
    """Tokens of this pass: block size over steps, the remainder one each in the first passes; at least 1."""
    start = torch.minimum(settings.prompt_length + (progress.opened - 1) * settings.block_size, settings.length - 1)
    size = blocks.end_of(progress.opened) - start
    steps = settings.steps_per_block.clamp(min=1)
    done = progress.passes - progress.opened_pass
    quota = torch.div(size, steps, rounding_mode="floor") + (done < size % steps).long()
    return torch.where(settings.steps_per_block > 0, quota, 1).clamp(min=1)
