"""EntropyThreshold: SGLang's decoding one block at a time, the next blocks not yet on the canvas (spec B.2)."""

from __future__ import annotations

import torch

from d3llm_trt.model.config import Family
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.runtime.decoding.algorithm import Choice, Opening, Scores
from d3llm_trt.runtime.decoding.blocks import Blocks, lowest


class EntropyThreshold:
    """Accepts the lowest entropy and all below the threshold. The network sees the canvas up to the open block.

    Unlike SGLang's, a block is decoded until it has no mask, and there is no forward pass behind it.
    """

    def open(self, settings: RequestSettings, progress: RequestProgress, blocks: Blocks) -> Opening:
        visible = blocks.masked & (blocks.positions < blocks.end_of(progress.opened)[:, None])
        opened = torch.minimum(progress.opened + (~visible.any(1)).long(), settings.num_blocks)
        end = blocks.end_of(opened)
        return Opening(opened, progress.active, end, end)

    def accept(
        self, family: Family, settings: RequestSettings, progress: RequestProgress, blocks: Blocks, scores: Scores
    ) -> Choice:
        below = progress.candidates & (scores.entropy < settings.threshold[:, None])
        accepted = below | lowest(scores.entropy, progress.candidates)
        return Choice.of_sampled(accepted)
