"""Select: one pass over each candidate's logits row gives its token, entropy and confidence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# SplitMix64: its increment and the two multipliers of its finalizer, as signed 64-bit integers.
UNIFORM_BITS = 23
_INCREMENT, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


@dataclass(frozen=True)
class SampleKeys:
    """What random numbers are made from, ``[R]`` each: the same wherever a request is in a batch."""

    temperature: Tensor
    seed: Tensor
    position: Tensor
    number: Tensor


@dataclass(frozen=True)
class Selected:
    """Per logits row, ``[R]``: most likely token, sampled token, entropy in nats, probability of the sampled token."""

    greedy: Tensor
    sampled: Tensor
    entropy: Tensor
    confidence: Tensor


def select(logits: Tensor, mask_id: int, eps: Tensor, keys: SampleKeys | None) -> Selected:
    """Select from ``logits[R, vocab]`` in float32; without ``keys`` the sampled token is the most likely one.

    The mask id stays in the softmax but is never chosen (spec T11); of equals the lowest id wins. Entropy is
    ``-sum p ln(p + eps)`` at temperature 1 with ``eps[R]`` (spec T10).
    """
    logits = logits.float()
    p = logits.softmax(-1)
    entropy = -(p * (p + eps[:, None]).log()).sum(-1)
    greedy = sampled = _likeliest(logits, mask_id)
    if keys is not None:
        noisy = logits + keys.temperature[:, None] * gumbel_noise(keys, logits.shape[1])
        sampled = torch.where(keys.temperature > 0, _likeliest(noisy, mask_id), greedy)
    return Selected(greedy, sampled, entropy, p.gather(1, sampled[:, None])[:, 0])


def _likeliest(scores: Tensor, mask_id: int) -> Tensor:
    allowed = scores.clone()
    allowed[:, mask_id] = -torch.inf
    return allowed.argmax(-1)


def gumbel_noise(keys: SampleKeys, vocab: int) -> Tensor:
    """Gumbel noise ``[R, vocab]`` in float32 from a counter: a function of seed, position, pass and token id only.

    Adding it times the temperature to the logits and taking the largest samples from their softmax at that
    temperature, which is both families' rule (spec T4, B.5).
    """
    key = _mixed(_mixed(_mixed(keys.seed + _INCREMENT) + keys.position) + keys.number)
    counter = torch.arange(1, vocab + 1, device=key.device) * _INCREMENT
    return gumbel_of_bits(_shifted(_mixed(key[:, None] + counter), 64 - UNIFORM_BITS))


def gumbel_of_bits(bits: Tensor) -> Tensor:
    """Finite Gumbel noise from integers below ``2**UNIFORM_BITS``."""
    # One bit fewer than float32 has: with all of them, adding a half would round up to 1, and its noise is infinite.
    return -torch.log(-torch.log((bits.float() + 0.5) / (1 << UNIFORM_BITS)))


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
