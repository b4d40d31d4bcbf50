"""What both training stages share: a loop that fills a time budget, Muon and AdamW, a running mean of the weights."""

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
REPORT_EVERY = 500  # steps
SAVE_EVERY = 60  # seconds
TABLES = ("embedding.weight", "lm_head.weight")
MATRIX_STEP = 0.2  # root mean square of Muon's steps, about that of AdamW's, so that both take one learning rate
NEWTON = (3.4445, -4.7750, 2.0315)  # an odd polynomial that takes singular values towards 1

Loss = Callable[[Weights, float], Tensor]  # (weights, progress in 0..1) -> scalar
Save = Callable[[Weights], None]


def learning_rate(peak: float, progress: float) -> float:
    """Linear warm-up, then a cosine."""
    if progress < WARM_UP:
        return peak * max(progress / WARM_UP, 0.01)
    swing = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * (LAST_RATE + (1 - LAST_RATE) * swing)


def orthogonal(stack: Tensor) -> Tensor:
    """Of each matrix of ``[N, m, n]`` roughly U V from its singular value decomposition U S V."""
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.mT
    x = wide.bfloat16() if wide.is_cuda else wide
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    first, third, fifth = NEWTON
    for _ in range(5):
        gram = x @ x.mT
        x = first * x + (third * gram + fifth * gram @ gram) @ x
    return (x if wide is stack else x.mT).to(stack.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonal matrices; each group of parameters has one shape and is one batch."""

    def __init__(self, groups: list[list[Tensor]], momentum: float = 0.95, weight_decay: float = 0.02) -> None:
        defaults = {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": group} for group in groups], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            matrices = group["params"]
            gradients = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]
            speed = state.setdefault("speed", torch.zeros_like(gradients)).lerp_(gradients, 1 - group["momentum"])
            steps = orthogonal(gradients.lerp(speed, group["momentum"]))
            rate = -group["lr"] * MATRIX_STEP * max(steps.shape[1:]) ** 0.5
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(steps.unbind()), alpha=rate)


def make_optimizers(parameters: Weights, *, muon: bool = True) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest, or for all."""
    shapes: dict[torch.Size, list[Tensor]] = {}
    for name, parameter in parameters.items():
        if muon and parameter.ndim == 2 and name not in TABLES:
            shapes.setdefault(parameter.shape, []).append(parameter)
    matrices = {id(matrix) for group in shapes.values() for matrix in group}
    rest = [parameter for parameter in parameters.values() if id(parameter) not in matrices]
    vectors, tables = ([p for p in rest if p.ndim == ndim] for ndim in (1, 2))
    groups = [{"params": tables, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=tables[0].is_cuda)
    return [Muon(list(shapes.values())), adamw] if shapes else [adamw]


def optimize(
    weights: Weights,
    loss_of: Loss,
    seconds: float,
    peak: float,
    label: str,
    save: Save,
    clock: Callable[[], float] = time.monotonic,
) -> Weights:
    """Train for ``seconds`` of the clock, after a first pass that changes nothing, which compiles.

    Returns the running mean of the weights; ``save`` is called with it about once a minute.
    """
    parameters = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    means = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizers = make_optimizers(parameters)
    _step(parameters, optimizers, loss_of, 0.0, 0.0).item()
    start, step, elapsed, saved = clock(), 0, 0.0, 0
    while elapsed < seconds:
        loss = _step(parameters, optimizers, loss_of, elapsed / seconds, peak)
        decay = min(MEAN_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(means.values()), [p.detach() for p in parameters.values()], 1 - decay)
        step, elapsed = step + 1, clock() - start
        if step % REPORT_EVERY == 0 or step == 1:
            print(f"{label}: step {step} loss {loss.item():.4f} {elapsed:.0f} s", flush=True)
        if elapsed > SAVE_EVERY * (saved + 1):
            saved += 1
            save(means)
    print(f"{label}: {step} steps", flush=True)
    return means


def _step(
    parameters: Weights, optimizers: list[torch.optim.Optimizer], loss_of: Loss, progress: float, peak: float
) -> Tensor:
    loss = loss_of(parameters, progress)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, progress)
        optimizer.step()
    return loss.detach()
