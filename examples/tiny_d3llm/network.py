"""The two tiny networks and their forward pass for training: dense batches, gradients, no KV cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from d3llm_trt.model.config import Family, ModelConfig
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins import reference
from examples.tiny_d3llm.tokenizer import END, MASKS, PLAIN_TOKENS, SPECIALS, TABLE_ROWS

Weights = dict[str, Tensor]


def special_id(family: Family, token: str) -> int:
    """Id of a special token: they follow the plain ones."""
    return PLAIN_TOKENS + SPECIALS[family].index(token)


def tiny_config(family: Family) -> ModelConfig:
    """About 3.5 million parameters; Dream with grouped-query attention."""
    end = special_id(family, END)
    return ModelConfig(
        family=family,
        vocab_size=TABLE_ROWS,
        hidden_size=256,
        intermediate_size=768,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4 if family == "llada" else 2,
        head_dim=64,
        rms_norm_eps=1e-5 if family == "llada" else 1e-6,
        rope_theta=500000.0 if family == "llada" else 1000000.0,
        max_position_embeddings=512,
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


class TrainingOps(TorchOps):
    """TorchOps with gradients for ``batch`` canvases of equal length, every position attending to every other."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], batch: int, length: int) -> None:
        device = weights["embedding.weight"].device
        tables = rotary_tables(config, length, device)
        super().__init__(config, weights, torch.empty(0, device=device), Windows.whole(length), tables)
        self._shape = (batch, length)

    def rms_norm(self, name: str, x: Tensor, feeds: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self._config.rms_norm_eps) * self._weights[f"{name}.weight"]

    def add_linear_norm(self, residual: Tensor, linear: str, x: Tensor, norm: str, feeds: str) -> tuple[Tensor, Tensor]:
        total = residual + self.linear(linear, x)
        return total, self.rms_norm(norm, total, feeds)

    def gated_mlp(self, name: str, gate_up: Tensor, feeds: str) -> Tensor:
        return reference.silu_mul(gate_up)

    def attention(self, name: str, layer: int, qkv: Tensor, feeds: str) -> Tensor:
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        packed = qkv.view(*self._shape, heads + 2 * kv_heads, self._config.head_dim)
        q, k, v = packed.split((heads, kv_heads, kv_heads), dim=2)
        cos, sin = self._cos[:, None], self._sin[:, None]
        q, k = reference.rotate(q, cos, sin), reference.rotate(k, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        attended = F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != kv_heads)
        return attended.transpose(1, 2).reshape(len(qkv), -1)


def position_logits(config: ModelConfig, weights: Mapping[str, Tensor], canvases: Tensor, wanted: Tensor) -> Tensor:
    """Float32 logits ``[W, vocab]`` that score the flat positions ``wanted[W]`` of ``canvases[B, L]``.

    Dream's row i scores position i+1, so the row before is taken; no position wanted may start a canvas.
    """
    ops = TrainingOps(config, weights, *canvases.shape)
    rows = wanted - 1 if config.shifted_logits else wanted
    return forward(config, ops, canvases.reshape(-1), rows).float()
