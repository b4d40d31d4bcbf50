"""What both training stages share: a loop that fills a time budget, AdamW, and a running mean of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from examples.tiny_d3llm.network import Weights

WARM_UP = 0.02  # share of the budget
LAST_RATE = 0.02  # of the peak learning rate
MEAN_DECAY = 0.998
REPORT_EVERY = 500

Loss = Callable[[Weights, float], Tensor]  # (weights, progress in 0..1) -> scalar


def learning_rate(peak: float, progress: float) -> float:
    """Linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return peak * max(progress / WARM_UP, 0.01)
    swing = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * (LAST_RATE + (1 - LAST_RATE) * swing)


def optimize(weights: Weights, loss_of: Loss, seconds: float, peak: float, label: str) -> Weights:
    """Train for ``seconds`` and return the running mean of the weights."""
    parameters = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    means = [parameter.detach().clone() for parameter in parameters.values()]
    optimizer = _adamw(parameters)
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        loss = _step(parameters, optimizer, loss_of, progress, peak)
        decay = min(MEAN_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(means, [p.detach() for p in parameters.values()], 1 - decay)
        step += 1
        if step % REPORT_EVERY == 0 or step == 1:
            elapsed = time.monotonic() - start
            print(f"{label}: step {step} loss {loss.item():.4f} {elapsed:.0f} s", flush=True)
        progress = (time.monotonic() - start) / seconds
    return dict(zip(parameters, means, strict=True))


def _adamw(parameters: Weights) -> torch.optim.AdamW:
    matrices = [p for p in parameters.values() if p.ndim == 2]
    vectors = [p for p in parameters.values() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=matrices[0].is_cuda)


def _step(parameters: Weights, optimizer: torch.optim.AdamW, loss_of: Loss, progress: float, peak: float) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(peak, progress)
    loss = loss_of(parameters, progress)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
    optimizer.step()
    return loss.detach()
