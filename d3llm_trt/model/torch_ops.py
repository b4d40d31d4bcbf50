"""Ops in torch: the CPU reference, also usable on a GPU.

Weights and KV cache are plain tensors. Attention runs one window at a time, so rows of one request never see
another request's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d3llm_trt.model.config import ModelConfig


@dataclass(frozen=True)
class Window:
    """One request's rows in a packed batch: rows ``[start, end)`` attend to cache rows ``[0, kv_length)``."""

    start: int
    end: int
    slot: int
    kv_length: int


def rotary_angles(config: ModelConfig, positions: Tensor) -> Tensor:
    """Angles ``[T, head_dim / 2]`` in float32 for absolute ``positions[T]`` (spec A.3)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device)
    frequencies = 1.0 / (config.rope_theta ** (half / config.head_dim))
    return positions.to(torch.float32)[:, None] * frequencies


def rotary_table(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[T, 1, head_dim]`` in float32 for absolute ``positions[T]``, half-split."""
    angles = rotary_angles(config, positions)
    angles = torch.cat((angles, angles), dim=-1)[:, None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of ``x[T, heads, head_dim]`` in float32, cast back to ``x``'s dtype."""
    full = x.to(torch.float32)
    first, second = full.chunk(2, dim=-1)
    return (full * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class TorchOps:
    """The Ops protocol over torch tensors, for one forward pass.

    Args:
        config: the network.
        weights: packed weights by name (:meth:`ModelConfig.tensor_shapes`), all of one dtype and device.
        kv_cache: ``[layers, slots, 2, kv_heads, max_seq, head_dim]``, same dtype and device.
        positions: absolute position of every packed row, ``[T]``.
        windows: the windows of the batch, in packed order.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        kv_cache: Tensor,
        positions: Tensor,
        windows: list[Window],
    ) -> None:
        self._config = config
        self._weights = weights
        self._kv_cache = kv_cache
        self._positions = positions
        self._windows = windows
        self._cos, self._sin = rotary_table(config, positions)

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._weights[f"{name}.weight"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def rms_norm(self, name: str, x: Tensor) -> Tensor:
        full = x.to(torch.float32)
        normed = full * torch.rsqrt(full.square().mean(-1, keepdim=True) + self._config.rms_norm_eps)
        return normed.to(x.dtype) * self._weights[f"{name}.weight"]

    def add(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def attention(self, name: str, layer: int, qkv: Tensor) -> Tensor:
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        packed = qkv.view(-1, heads + 2 * kv_heads, self._config.head_dim)
        q, k, v = torch.split(packed, [heads, kv_heads, kv_heads], dim=1)
        q, k = rotate(q, self._cos, self._sin), rotate(k, self._cos, self._sin)
        return self._attend(layer, q, k, v).reshape(-1, heads * self._config.head_dim)

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write ``k, v[T, kv_heads, d]`` to the cache, then attend: ``q[T, heads, d]`` -> same shape."""
        out = torch.zeros_like(q)
        for window in self._windows:
            rows = slice(window.start, window.end)
            cache = self._kv_cache[layer, window.slot]
            at = self._positions[rows]
            cache[0].index_copy_(1, at, k[rows].transpose(0, 1))
            cache[1].index_copy_(1, at, v[rows].transpose(0, 1))
            keys, values = cache[:, None, :, : window.kv_length]
            attended = F.scaled_dot_product_attention(
                q[rows].transpose(0, 1)[None], keys, values, enable_gqa=keys.shape[1] != q.shape[1]
            )
            out[rows] = attended[0].transpose(0, 1)
        return out

    def gated_mlp(self, name: str, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def gather_rows(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]
