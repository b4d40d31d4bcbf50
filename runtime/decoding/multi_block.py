"""MultiBlock: d3LLM's own decoding by family, with or without the delayed KV cache (spec B.3 to B.5)."""

from __future__ import annotations

import torch

from d3llm_trt.model.config import Family
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.runtime.decoding.algorithm import Choice, Opening, Scores, activated, below_threshold_or_forced
from d3llm_trt.runtime.decoding.blocks import Blocks, forced, last_reachable_end, lowest


class MultiBlock:
    """At most one block opens per pass. LLaDA always accepts the lowest entropy of all candidates too."""

    def open(self, settings: RequestSettings, progress: RequestProgress, blocks: Blocks) -> Opening:
        newest = progress.opened[:, None]
        share, masks = (values.gather(1, newest)[:, 0] for values in (blocks.progress, blocks.masks))
        ready = (share >= settings.block_add_threshold) | (masks == 0)
        opened = torch.minimum(progress.opened + ready.long(), settings.num_blocks)
        # Behind an EOS there is nothing left to decode, so every block exists from then on.
        opened = torch.where(blocks.has_eos, settings.num_blocks, opened)
        active = activated(settings, progress, blocks, opened)
        return Opening(opened, active, last_reachable_end(blocks, opened, active), settings.length)

    def accept(
        self, family: Family, settings: RequestSettings, progress: RequestProgress, blocks: Blocks, scores: Scores
    ) -> Choice:
        if family == "dream":
            return below_threshold_or_forced(settings, progress, blocks, scores)
        candidates, threshold = progress.candidates, settings.threshold[:, None]
        accepted = (candidates & (scores.entropy <= threshold)) | lowest(scores.entropy, candidates)
        return Choice(accepted, forced(blocks, progress.active, scores.entropy, candidates, accepted))
