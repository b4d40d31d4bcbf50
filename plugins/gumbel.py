"""Gumbel noise from a counter: the same bits on every device, far into its tail.

Noise is ``-log(E)`` of exponential ``E = -log(1 - v)``, and ``v`` a uniform number of 52 random bits of which float32
holds the leading 24, of ``v`` or of ``1 - v``, whichever is smaller. Every step is one operation of float32 or of
integers that IEEE 754 rounds in one way only, so the kernel (``kernels/gumbel.h``) and every device of torch give the
same noise, logarithms too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# SplitMix64: its increment and the two multipliers of its finalizer, as signed 64-bit integers.
_INCREMENT, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15

# log(1 + r) / r between -0.301 and 0.399, to 3e-8, the constant term first; each is a float32.
_LOG_TERMS = (
    1.0,
    -0.4999997317790985,
    0.33333906531333923,
    -0.25003892183303833,
    0.19966506958007812,
    -0.16513195633888245,
    0.14795230329036713,
    -0.14725732803344727,
    0.09695299714803696,
)
_LN2 = 0.6931471824645996
_LEAST_MANTISSA = 0x3F330000  # of what is left of a number over a power of two: 0.699, as a float32

UNIFORM_BITS = 27  # few enough that all their values can be listed
# What stands for all numbers with the same leading bits: noise is convex, so a little below the middle.
_REST = int(0.42 * (1 << (64 - UNIFORM_BITS)))


@dataclass(frozen=True)
class SampleKeys:
    """What random numbers are made from, ``[R]`` each: the same wherever a request is in a batch."""

    temperature: Tensor
    seed: Tensor
    position: Tensor
    number: Tensor


def gumbel_noise(keys: SampleKeys, vocab: int) -> Tensor:
    """Noise ``[R, vocab]`` in float32: a function of seed, position, pass and token id only.

    Adding it times the temperature to the logits and taking the largest samples from their softmax at that
    temperature, which is both families' rule (spec T4, B.5).
    """
    key = _mixed(_mixed(_mixed(keys.seed + _INCREMENT) + keys.position) + keys.number)
    counter = torch.arange(1, vocab + 1, device=key.device) * _INCREMENT
    return gumbel_of_words(_mixed(key[:, None] + counter))


def gumbel_of_words(words: Tensor) -> Tensor:
    """Noise between -3.61 and 36.74 from random int64 ``words`` of 64 bits; smaller words, as unsigned, give more."""
    bits = ((words ^ (words >> 63)) >> 11 | 1).double().view(torch.int64)
    # A float64 times 2**-53 as a float32, cut off: its exponent moves, and its leading 23 bits stay.
    smaller = ((bits >> 29) - ((1023 + 53 - 127) << 23)).int().view(torch.float32)
    u = torch.where(words < 0, smaller, 1 - smaller)
    v = torch.where(words < 0, 1 - smaller, smaller)
    # Where v is the exact one, the rounding of u is made up for by how far it is from 1.
    exponential = torch.where(u == 1, v, _log(u) * (v / (u - 1)))
    return -_log(exponential)


def gumbel_of_bits(bits: Tensor) -> Tensor:
    """Noise that stands for all words with the same leading bits: ``bits`` below ``2**UNIFORM_BITS``, ascending.

    All values are as likely as each other, so enumerating them tests a distribution without chance.
    """
    last = (1 << UNIFORM_BITS) - 1
    parts = torch.split(bits, 1 << 18)
    return torch.cat([gumbel_of_words((last - part << (64 - UNIFORM_BITS)) + _REST) for part in parts])


def _log(x: Tensor) -> Tensor:
    """The natural logarithm of positive normal float32 numbers, to 2 ulp."""
    bits = x.view(torch.int32)
    power = (bits - _LEAST_MANTISSA) >> 23
    r = (bits - (power << 23)).view(torch.float32) - 1
    series = torch.full_like(r, _LOG_TERMS[-1])
    for term in reversed(_LOG_TERMS[:-1]):
        series.mul_(r).add_(term)
    return power.float().mul_(_LN2).add_(series.mul_(r))


def _mixed(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
