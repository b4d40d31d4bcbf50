"""top_k and top_p: which tokens they leave, exactly and the same on every device (the kernel's is ``nucleus.h``).

Tokens stand in the order of their distance below the likeliest one, in float32, and equals by id. ``top_k`` leaves the
first so many; ``top_p`` leaves the fewest of these whose share of their mass at the temperature reaches it, so at least
one. Masses are integers, in units of 2**-40 of the likeliest token's: no order of summation shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MASS_BITS = 40
_OCTAVES_PER_NAT = 1.4426950216293335
# 2**-x between 0 and 1, the constant term first; each is a float32.
_POWER_TERMS = (
    1.0,
    -0.6931437253952026,
    0.2401801496744156,
    -0.0552973598241806,
    0.00920579768717289,
    -0.0009449035860598087,
)


@dataclass(frozen=True)
class Limits:
    """``top_k[R]`` in int64, 0 for no limit; ``top_p[R]`` in float64, 1 for no limit."""

    top_k: Tensor
    top_p: Tensor


def kept_tokens(scores: Tensor, temperature: Tensor, limits: Limits) -> Tensor:
    """Which tokens may be sampled at ``temperature[R]``, ``[R, vocab]``, of float32 ``scores[R, vocab]``."""
    below = scores.amax(1, keepdim=True) - scores
    distance, order = below.sort(dim=1, stable=True)
    rank, most, share = (
        torch.arange(scores.shape[1], device=scores.device),
        limits.top_k[:, None],
        limits.top_p[:, None],
    )
    first = (most <= 0) | (rank < most)
    masses = _masses(distance, temperature) * first
    before, total = masses.cumsum(1) - masses, masses.sum(1, keepdim=True)
    kept = first & ((share >= 1) | (before.double() < share * total.double()))
    return torch.zeros_like(kept).scatter_(1, order, kept)


def _masses(distance: Tensor, temperature: Tensor) -> Tensor:
    """Masses of tokens that lie so many nats below the likeliest one of their row: int64 ``[R, vocab]``."""
    warm = torch.where(temperature > 0, temperature, 1.0)
    # A number over a tensor would be the tensor's reciprocal, rounded, times the number.
    octaves = distance * (torch.full_like(warm, _OCTAVES_PER_NAT) / warm)[:, None]
    octaves = torch.where(octaves < 63, octaves, 63.0)
    whole = octaves.int()
    part = octaves - whole
    power = torch.full_like(part, _POWER_TERMS[-1])
    for term in reversed(_POWER_TERMS[:-1]):
        power.mul_(part).add_(term)
    return (power * (1 << 24)).long() << (MASS_BITS - 24) >> whole
