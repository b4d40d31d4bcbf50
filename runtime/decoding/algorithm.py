"""What an unmasking algorithm is: which blocks are open before a pass, and what the pass commits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from d3llm_trt.model.config import Family
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings
from d3llm_trt.runtime.decoding.blocks import Blocks, forced


@dataclass(frozen=True)
class Opening:
    """What is open in a pass: ``opened[B]`` generated blocks, of which ``active[B, K]`` are active; candidates end at
    ``limit[B]``, and the network sees ``live_length[B]`` positions."""

    opened: Tensor
    active: Tensor
    limit: Tensor
    live_length: Tensor


@dataclass(frozen=True)
class Scores:
    """What the network says about the candidates, dense ``[B, W]``.

    ``entropy`` is infinite and ``confidence``, the probability of the (sampled) token, -1 elsewhere.
    """

    entropy: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Choice:
    """Positions to commit, ``[B, W]``: ``sampled`` take the sampled token, ``greedy`` the most likely one."""

    sampled: Tensor
    greedy: Tensor

    @classmethod
    def of_sampled(cls, accepted: Tensor) -> Choice:
        """A choice in which all of ``accepted[B, W]`` take the sampled token."""
        return cls(accepted, torch.zeros_like(accepted))


class Algorithm(Protocol):
    """Tensor code over rows of the state, all of them at once; rows of other algorithms are computed and ignored."""

    def open(self, settings: RequestSettings, progress: RequestProgress, blocks: Blocks) -> Opening:
        """Which blocks are open in the next pass."""

    def accept(
        self, family: Family, settings: RequestSettings, progress: RequestProgress, blocks: Blocks, scores: Scores
    ) -> Choice:
        """Which candidates this pass commits."""


def below_threshold_or_forced(
    settings: RequestSettings, progress: RequestProgress, blocks: Blocks, scores: Scores
) -> Choice:
    """Commit all candidates below the threshold, and one forced pick (spec B.1, and B.5, Dream)."""
    accepted = progress.candidates & (scores.entropy < settings.threshold[:, None])
    accepted = accepted | forced(blocks, progress.active, scores.entropy, progress.candidates, accepted)
    return Choice.of_sampled(accepted)


def activated(settings: RequestSettings, progress: RequestProgress, blocks: Blocks, opened: Tensor) -> Tensor:
    """Active blocks ``[B, K]``: those that were, and opened ones behind a block that is decoded far enough."""
    numbers = blocks.numbers
    activates = blocks.previous(blocks.progress) >= settings.decoded_token_threshold[:, None]
    return progress.active | (activates & (numbers >= 2) & (numbers <= opened[:, None]))
