"""Batch decoders for training and quick checks: packed canvases, all of them recomputed in full in every pass.

They follow the same rules as the runtime's LowConfidence and FullAttnMultiBlock with early stop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from examples.tiny_d3llm.data import Dataset
from examples.tiny_d3llm.network import Weights, position_logits
from examples.tiny_d3llm.packing import Layout

BLOCK = 32
BLOCK_ADD, DECODED = 0.1, 0.95


@dataclass(frozen=True)
class Scores:
    """What one pass says about every answer position, ``[B, N]`` each, and which of them are still masked.

    Masks behind the first EOS do not count any more.
    """

    masked: Tensor
    tokens: Tensor
    confidence: Tensor
    entropy: Tensor


Rule = Callable[[Scores], Tensor]  # -> positions to commit, [B, N]


@dataclass(frozen=True)
class Decoded:
    """Answers ``ids[B, N]``, the pass that committed each position (0: none), and passes per canvas."""

    ids: Tensor
    commit: Tensor
    passes: Tensor


@torch.inference_mode()
def decode(config: ModelConfig, weights: Weights, problems: Dataset, count: int, rule: Rule) -> Decoded:
    """Decode the problems with ``count`` answer positions each, until each answer's first EOS is certain."""
    batch, device = len(problems.start), problems.ids.device
    lengths = problems.prompt_length + count
    layout = Layout.of(lengths, int(lengths.sum()), int(lengths.max()))
    ids = problems.tokens(torch.arange(batch, device=device)[layout.canvas], layout.positions)
    places = layout.edges[1:, None].long() - count + torch.arange(count, device=device)  # of the answers
    answers = places.new_full((batch, count), config.mask_token_id, dtype=torch.int64)
    commit, passes = torch.zeros_like(answers), answers.new_zeros(batch)
    while (masked := open_masks(config, answers)).any():
        logits = position_logits(config, weights, ids.index_put((places,), answers), layout, places.flatten())
        accepted = rule(_scores(config, logits.view(batch, count, -1), masked))
        tokens = _best(config, logits).view(batch, count)
        passes += masked.any(1)
        answers = torch.where(accepted, tokens, answers)
        commit = torch.where(accepted, passes[:, None], commit)
    return Decoded(answers, commit, passes)


def open_masks(config: ModelConfig, answers: Tensor) -> Tensor:
    """Masked positions before the first EOS."""
    ended = (answers == config.eos_token_id).cumsum(1) > 0
    return (answers == config.mask_token_id) & ~ended


def _best(config: ModelConfig, logits: Tensor) -> Tensor:
    allowed = logits.clone()
    allowed[..., config.mask_token_id] = -torch.inf
    return allowed.argmax(-1)


def _scores(config: ModelConfig, logits: Tensor, masked: Tensor) -> Scores:
    tokens = _best(config, logits)
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return Scores(masked, tokens, log_p.gather(-1, tokens[..., None])[..., 0].exp(), entropy)


def low_confidence(per_pass: int = 1) -> Rule:
    """The most confident positions of the first block that has masks."""

    def rule(scores: Scores) -> Tensor:
        count = scores.masked.shape[1]
        at = torch.arange(count, device=scores.masked.device)
        first = scores.masked.float().argmax(1, keepdim=True)
        candidates = scores.masked & (at < (first // BLOCK + 1) * BLOCK)
        confidence = scores.confidence.masked_fill(~candidates, -1.0)
        best = confidence.topk(min(per_pass, count), dim=1).indices
        return torch.zeros_like(candidates).scatter(1, best, True) & candidates

    return rule


class MultiBlock:
    """SGLang's FullAttnMultiBlock (spec B.1). One object decodes one batch."""

    def __init__(self, batch: int, count: int, threshold: float, device: torch.device) -> None:
        self._threshold = threshold
        self._of_block = torch.arange(count, device=device) // BLOCK
        blocks = int(self._of_block[-1]) + 1
        self._totals = torch.bincount(self._of_block, minlength=blocks).double()
        self._on = torch.zeros(batch, blocks, dtype=torch.bool, device=device)
        self._on[:, 0] = True
        self._active = self._on.clone()

    def __call__(self, scores: Scores) -> Tensor:
        left = self._left(scores.masked)
        self._open_blocks(left)
        reachable = self._on & (self._active | (left > 0))
        numbers = torch.arange(1, reachable.shape[1] + 1, device=left.device)
        last = (reachable * numbers).amax(1, keepdim=True) - 1
        candidates = scores.masked & (self._of_block <= last)
        accepted = candidates & (scores.entropy < self._threshold)
        return accepted | self._forced(scores, candidates, accepted, left)

    def _left(self, masked: Tensor) -> Tensor:
        left = masked.new_zeros(self._on.shape, dtype=torch.float64)
        return left.index_add(1, self._of_block, masked.double())

    def _open_blocks(self, left: Tensor) -> None:
        progress = 1 - left / self._totals
        for block in range(1, left.shape[1]):
            before = progress[:, block - 1]
            self._on[:, block] |= (before >= BLOCK_ADD) | (left[:, block - 1] == 0)
            self._active[:, block] |= self._on[:, block] & (before >= DECODED)

    def _forced(self, scores: Scores, candidates: Tensor, accepted: Tensor, left: Tensor) -> Tensor:
        waiting = self._active & (left > 0)
        first = waiting.float().argmax(1, keepdim=True)
        inside = candidates & (self._of_block == first) & waiting.any(1, keepdim=True)
        needed = inside.any(1, keepdim=True) & ~(accepted & inside).any(1, keepdim=True)
        best = scores.entropy.masked_fill(~inside, torch.inf).argmin(1, keepdim=True)
        return torch.zeros_like(inside).scatter(1, best, needed)
