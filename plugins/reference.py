"""What the kernels compute, in torch on any device: float32 inside, and float64 for float64 tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FP8_MAX = 448.0  # the largest value of float8_e4m3fn
FINE_EPS, COARSE_EPS = 1e-12, 1e-8  # inside the logarithm of the entropy (spec T10)

# SplitMix64: its increment and the two multipliers of its finalizer, as signed 64-bit integers.
UNIFORM_BITS = 23
_INCREMENT, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def window_attention(
    qkv: Tensor,
    kv_cache: Tensor,
    positions: Tensor,
    cu_window: Tensor,
    kv_lengths: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    out_scale: Tensor | None = None,
) -> Tensor:
    """RoPE, K/V of packed windows into the cache, and attention to it without a causal mask: ``[T, heads * d]``.

    Args:
        qkv: ``[T, (heads + 2 kv_heads) * d]``; window b is rows ``[cu_window[b], cu_window[b + 1])``.
        kv_cache: ``[slots, 2, kv_heads, max_seq, d]``, changed.
        positions: the absolute position of each row, ``[T]``.
        kv_lengths: how many cache rows each window attends to, ``[B]``; ``slots[B]`` is where its request lives.
        cos, sin: ``[max_seq, d / 2]`` in float32.
        out_scale: the unit of an output in FP8; without it the output is in the dtype of ``qkv``.

    Rows behind the last window come out as zeros. Reads the window layout on the host.
    """
    kv_heads, head_dim = kv_cache.shape[2], kv_cache.shape[4]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    packed = qkv.view(len(qkv), heads + 2 * kv_heads, head_dim)
    q, k, v = torch.split(packed, [heads, kv_heads, kv_heads], dim=1)
    cos, sin = cos[positions][:, None], sin[positions][:, None]
    q, k, out = rotate(q, cos, sin), rotate(k, cos, sin), torch.zeros_like(q)
    for rows, slot, length in _windows(cu_window, kv_lengths, slots):
        cache = kv_cache[slot]
        cache[0].index_copy_(1, positions[rows], k[rows].transpose(0, 1))
        cache[1].index_copy_(1, positions[rows], v[rows].transpose(0, 1))
        keys, values = cache[:, None, :, :length]
        attended = F.scaled_dot_product_attention(
            q[rows].transpose(0, 1)[None], keys, values, enable_gqa=kv_heads != heads
        )
        out[rows] = attended[0].transpose(0, 1)
    return _scaled(out.reshape(len(qkv), heads * head_dim), out_scale)


def _windows(cu_window: Tensor, kv_lengths: Tensor, slots: Tensor) -> Iterator[tuple[slice, int, int]]:
    edges = cu_window.tolist()
    for start, end, slot, length in zip(edges, edges[1:], slots.tolist(), kv_lengths.tolist(), strict=False):
        if start < end:
            yield slice(start, end), slot, length


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of ``x[..., heads, d]`` by ``cos, sin[..., 1, d / 2]``, cast back to ``x``'s dtype."""
    first, second = _precise(x).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out_scale: Tensor | None = None) -> Tensor:
    """RMSNorm of ``x[T, hidden]``, cast back before the multiplication by ``weight``; FP8 where there is a scale."""
    full = _precise(x)
    normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + eps)
    return _scaled(normed.to(x.dtype) * weight, out_scale)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, out_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`rms_norm` of ``x + residual``, and that sum."""
    total = x + residual
    return rms_norm(total, weight, eps, out_scale), total


def silu_mul(gate_up: Tensor, out_scale: Tensor | None = None) -> Tensor:
    """``silu(gate) * up`` of ``gate_up[T, 2 * intermediate]``; FP8 where there is a scale."""
    gate, up = gate_up.chunk(2, dim=-1)
    return _scaled(F.silu(gate) * up, out_scale)


def fp8_scale(peak: Tensor) -> Tensor:
    """The scale, in float32, in which the largest FP8 number is ``peak``."""
    return (peak.float() / FP8_MAX).clamp(min=1e-12)


def to_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """``x / scale`` as the nearest FP8 number; beyond the range the largest one."""
    return (x.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def fp8_linear(
    x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``x[T, in] @ weight[out, in].T`` plus ``bias[out]`` of FP8 numbers in units of their scales, in ``dtype``."""
    product = F.linear(x.float(), weight.float()) * (x_scale * weight_scale)
    return (product if bias is None else product + bias.float()).to(dtype)


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else to_fp8(x, scale)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
    """Select from ``logits[R, vocab]``; without ``keys`` the sampled token is the most likely one.

    The mask id stays in the softmax but is never chosen (spec T11); of equals the lowest id wins. Entropy is
    ``-sum p ln(p + eps)`` at temperature 1 with ``eps[R]`` (spec T10).
    """
    logits = _precise(logits)
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
