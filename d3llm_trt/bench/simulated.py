"""A scripted acceptance rate for random weights: an engine that makes as many candidates certain as it is told."""

from __future__ import annotations

import torch
from torch import Tensor

from d3llm_trt.runtime.engines.base import Engine, ForwardBatch

CERTAIN = 1e4  # added to a logit: entropy 0
TOKEN = 1  # any id that is neither mask nor EOS


class SimulatedAcceptance:
    """The engine's own forward pass, all of it; then the first candidates of every request become certain.

    On average ``tokens_per_forward`` of them each pass. Nothing but the outcome of the acceptance test changes.
    """

    def __init__(self, engine: Engine, tokens_per_forward: float) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._rate = tokens_per_forward

    def forward(self, batch: ForwardBatch) -> Tensor:
        logits = self._engine.forward(batch)
        owner = torch.searchsorted(batch.cu_window[1:], batch.logit_rows, right=True).clamp(max=len(batch.slots) - 1)
        certain = _rank_in_request(owner) < self._quota(batch)[owner]
        logits[:, TOKEN] += certain.to(logits.dtype) * CERTAIN
        return logits

    def _quota(self, batch: ForwardBatch) -> Tensor:
        """How many become certain in this pass, ``[B]``: the last passes commit the rate, the first one what is left.

        A function of the canvas alone, so that the same step gives the same result twice.
        """
        masked = (batch.token_ids == self.spec.model_config.mask_token_id).cumsum(0)
        before = torch.nn.functional.pad(masked, (1, 0))[batch.cu_window]
        ends = batch.positions[(batch.cu_window[1:] - 1).clamp(min=0)] + 1
        # Behind a window that ends early there are masks only.
        waiting = (before[1:] - before[:-1] + batch.kv_lengths - ends).clamp(min=0).double()
        passes = (waiting / self._rate).ceil()
        return waiting - ((passes - 1) * self._rate).floor()

    def close(self) -> None:
        self._engine.close()


def _rank_in_request(owner: Tensor) -> Tensor:
    """How many rows of the same request come before each of the rows ``owner[R]``."""
    index = torch.arange(len(owner), device=owner.device)
    starts = torch.nn.functional.pad(owner[1:] != owner[:-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(0).values
