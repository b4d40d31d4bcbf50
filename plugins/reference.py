"""What the kernels compute, in torch on any device: float32 inside, and float64 for float64 tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from d3llm_trt.plugins.gumbel import UNIFORM_BITS, SampleKeys, gumbel_noise, gumbel_of_bits
from d3llm_trt.plugins.nucleus import Limits, kept_tokens

__all__ = [
    "FP8_MAX", "UNIFORM_BITS", "Limits", "SampleKeys", "Selected", "add_rms_norm", "fp8_linear", "fp8_scale",
    "gumbel_noise", "gumbel_of_bits", "rms_norm", "rotate", "select", "silu_mul", "to_fp8", "window_attention",
]  # fmt: skip

FP8_MAX = 448.0  # the largest value of float8_e4m3fn
FINE_EPS, COARSE_EPS = 1e-12, 1e-8  # inside the logarithm of the entropy (spec T10)
_CACHED = 1 << 17  # logits whose noise is made at once
Values = TypeVar("Values", SampleKeys, Limits)


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
class Selected:
    """Per logits row, ``[R]``: tokens, entropy in nats, and what the softmax at temperature 1 says of the tokens.

    ``greedy`` is the most likely token; ``confidence`` is the probability of the ``sampled`` one, ``logprob`` its
    logarithm and ``greedy_logprob`` that of the most likely one, in nats.
    """

    greedy: Tensor
    sampled: Tensor
    entropy: Tensor
    confidence: Tensor
    logprob: Tensor
    greedy_logprob: Tensor


def select(
    logits: Tensor,
    mask_id: int,
    eps: Tensor,
    keys: SampleKeys | None,
    limits: Limits | None = None,
    barred: Tensor | None = None,
) -> Selected:
    """Select from ``logits[R, vocab]``; without ``keys`` the sampled token is the most likely one.

    The mask id stays in the softmax but is never chosen (spec T11), nor are the ids before the first negative one in
    each row of ``barred[R, n]``; of equals the lowest id wins. Entropy is ``-sum p ln(p + eps)`` at temperature 1 with
    ``eps[R]`` (spec T10), whatever the sampling.
    """
    logits = _precise(logits)
    p = logits.softmax(-1)
    entropy = -(p * (p + eps[:, None]).log()).sum(-1)
    choosable = _without(logits, mask_id, barred)
    greedy = sampled = choosable.argmax(-1)
    if keys is not None:
        sampled = torch.where(keys.temperature > 0, _sampled(choosable, keys, limits), greedy)
    confidence, logit, greedy_logit = (
        values.gather(1, token[:, None])[:, 0] for values, token in ((p, sampled), (logits, sampled), (logits, greedy))
    )
    total = logits.logsumexp(-1)
    return Selected(greedy, sampled, entropy, confidence, logit - total, greedy_logit - total)


def _without(logits: Tensor, mask_id: int, barred: Tensor | None) -> Tensor:
    """A copy with -inf for the ids that are never chosen."""
    choosable = logits.clone()
    choosable[:, mask_id] = -torch.inf
    if barred is not None:
        known = (barred >= 0).int().cumprod(1).bool()
        choosable.scatter_(1, torch.where(known, barred, mask_id), -torch.inf)
    return choosable


def _sampled(logits: Tensor, keys: SampleKeys, limits: Limits | None) -> Tensor:
    """The token of each row whose logit and Gumbel noise times the temperature add up to most, within the limits.

    The sum is in float64: neither a low temperature nor a high one loses the noise or the logit.
    """
    # On a CPU by parts that stay in its cache, which is four times as fast.
    rows = max(1, _CACHED // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
    parts = []
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        parts.append(_winners(logits[part], _rows(keys, part), None if limits is None else _rows(limits, part)))
    return torch.cat(parts) if parts else logits.new_empty(0, dtype=torch.int64)


def _winners(logits: Tensor, keys: SampleKeys, limits: Limits | None) -> Tensor:
    noise = keys.temperature.double()[:, None] * gumbel_noise(keys, logits.shape[1]).double()
    kept = logits > -torch.inf
    if limits is not None:
        kept &= kept_tokens(logits.float(), keys.temperature, limits)
    return noise.add_(logits).masked_fill_(~kept, -torch.inf).argmax(-1)


def _rows(values: Values, part: slice) -> Values:
    return replace(values, **{item.name: getattr(values, item.name)[part] for item in fields(values)})
