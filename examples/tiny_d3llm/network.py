"""The tiny networks and their forward pass over packed canvases, with gradients and without a KV cache."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from d3llm_trt.model.config import Family, ModelConfig
from d3llm_trt.model.torch_ops import RotaryTables, rotary_tables
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins import reference
from examples.tiny_d3llm.packing import Layout
from examples.tiny_d3llm.tasks import Task
from examples.tiny_d3llm.tokenizer import END, MASKS, TABLE_ROWS, special_id

Weights = dict[str, Tensor]


def tiny_config(task: Task, family: Family) -> ModelConfig:
    """The network of a family for a task; Dream with grouped-query attention."""
    end, size = special_id(family, END), task.sizes[family]
    return ModelConfig(
        family=family,
        vocab_size=TABLE_ROWS,
        hidden_size=task.hidden_size,
        intermediate_size=size.intermediate_size,
        num_layers=task.num_layers,
        num_heads=task.num_heads,
        num_kv_heads=size.num_kv_heads,
        head_dim=task.hidden_size // task.num_heads,
        rms_norm_eps=1e-5 if family == "llada" else 1e-6,
        rope_theta=500000.0 if family == "llada" else 1000000.0,
        max_position_embeddings=task.max_positions,
        mask_token_id=special_id(family, MASKS[family]),
        eos_token_id=end,
        pad_token_id=end,
    )


def initial_weights(config: ModelConfig, seed: int) -> Weights:
    """Packed float32 weights: small Gaussians, smaller where they feed the residual stream."""
    generator = torch.Generator().manual_seed(seed)
    residual_scale = (2 * config.num_layers) ** -0.5
    weights: Weights = {}
    for name, shape in config.tensor_shapes().items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(shape)
        elif name.endswith(".bias"):
            weights[name] = torch.zeros(shape)
        else:
            scale = residual_scale if name.endswith(("output.weight", "down.weight")) else 1.0
            weights[name] = torch.randn(shape, generator=generator) * 0.04 * scale
    return weights


def as_deployed(weights: Mapping[str, Tensor]) -> Weights:
    """The weights rounded to bfloat16, as in the checkpoint; gradients pass through.

    A GPU also computes in bfloat16. A CPU computes in float32, because few are fast in bfloat16.
    """
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    return {name: weight if weight.is_cuda else weight.float() for name, weight in rounded.items()}


class PackedOps:
    """The Ops protocol with gradients: packed canvases, every position attending to all of its canvas."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], layout: Layout, tables: RotaryTables
    ) -> None:
        self._config = config
        self._weights = weights
        self._layout = layout
        self._cos, self._sin = (table[layout.positions][:, None] for table in tables)

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        return F.embedding(ids, self._weights[f"{name}.weight"])

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def rms_norm(self, name: str, x: Tensor, feeds: str) -> Tensor:
        return reference.rms_norm(x, self._weights[f"{name}.weight"], self._config.rms_norm_eps)

    def add_linear_norm(self, residual: Tensor, linear: str, x: Tensor, norm: str, feeds: str) -> tuple[Tensor, Tensor]:
        total = residual + self.linear(linear, x)
        return total, self.rms_norm(norm, total, feeds)

    def gated_mlp(self, name: str, gate_up: Tensor, feeds: str) -> Tensor:
        return reference.silu_mul(gate_up)

    def attention(self, name: str, layer: int, qkv: Tensor, feeds: str) -> Tensor:
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        packed = qkv.view(len(qkv), heads + 2 * kv_heads, self._config.head_dim)
        q, k, v = packed.split((heads, kv_heads, kv_heads), dim=1)
        q, k = (reference.rotate(part, self._cos, self._sin) for part in (q, k))
        k, v = (part.repeat_interleave(heads // kv_heads, dim=1) for part in (k, v))
        return attend(q, k, v, self._layout).reshape(len(qkv), -1)

    def gather_rows(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]


class TrainingOps(PackedOps):
    """Every position is scored, whatever rows are asked for: by its own row, or by the row before (Dream)."""

    def gather_rows(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        return x.roll(1, 0) if self._config.shifted_logits else x


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Attention of ``q, k, v[T, heads, d]`` inside each canvas. On a GPU one kernel, which torch has from 2.10 on."""
    if q.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        return cast(Tensor, varlen_attn(q, k, v, layout.edges, layout.edges, layout.longest, layout.longest))
    q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    parts = []
    for start, end in itertools.pairwise(layout.edges.tolist()):
        inside = slice(start, end)
        parts.append(F.scaled_dot_product_attention(q[:, inside], k[:, inside], v[:, inside]))
    return torch.cat(parts, dim=1).transpose(0, 1)


def position_logits(
    config: ModelConfig, weights: Mapping[str, Tensor], ids: Tensor, layout: Layout, wanted: Tensor
) -> Tensor:
    """Float32 logits ``[W, vocab]`` that score the packed positions ``wanted[W]`` of ``ids[T]``.

    Dream's row i scores position i+1, so the row before is taken; no position wanted may start a canvas.
    """
    ops = PackedOps(config, weights, layout, rotary_tables(config, layout.longest, ids.device))
    rows = wanted - 1 if config.shifted_logits else wanted
    return forward(config, ops, ids, rows).float()


def all_logits(
    config: ModelConfig, weights: Mapping[str, Tensor], ids: Tensor, layout: Layout, tables: RotaryTables
) -> Tensor:
    """Float32 logits ``[T, vocab]`` that score every packed position; those of canvas starts mean nothing for Dream."""
    return forward(config, TrainingOps(config, weights, layout, tables), ids, ids).float()
