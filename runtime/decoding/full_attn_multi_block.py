"""FullAttnMultiBlock: SGLang's multi-block decoding without a KV cache (spec B.1)."""

from __future__ import annotations

import torch

from d3llm_trt.model.config import Family
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.runtime.decoding.algorithm import Choice, Opening, Scores, activated, below_threshold_or_forced
from d3llm_trt.runtime.decoding.blocks import Blocks, last_reachable_end


class FullAttnMultiBlock:
    """Accepts below the threshold, and one forced pick; several blocks may open in one pass."""

    def open(self, settings: RequestSettings, progress: RequestProgress, blocks: Blocks) -> Opening:
        before = blocks.previous(blocks.progress)
        numbers = blocks.numbers
        exists = numbers <= settings.num_blocks[:, None]
        ready = (before >= settings.block_add_threshold[:, None]) | (blocks.previous(blocks.masks) == 0)
        opens = exists & (numbers >= 2) & ready
        opened = torch.maximum(progress.opened, torch.where(opens, numbers, 0).amax(1))
        active = activated(settings, progress, blocks, opened)
        return Opening(opened, active, last_reachable_end(blocks, opened, active), settings.length)

    def accept(
        self, family: Family, settings: RequestSettings, progress: RequestProgress, blocks: Blocks, scores: Scores
    ) -> Choice:
        return below_threshold_or_forced(settings, progress, blocks, scores)
