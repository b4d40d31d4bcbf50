"""What a user would write today: the same network in plain torch, eager or compiled, for the same step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.torch_ops import rotary_tables
from d3llm_trt.plugins.reference import rms_norm, rotate, silu_mul
from d3llm_trt.runtime.stepping.measured_sizes import gpu_seconds

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def plain_step(config: ModelConfig, weights: Mapping[str, Tensor]) -> Step:
    """``(token_ids[B, T], rows[R])`` to entropy, most likely id and its probability ``[R]``, all at full length."""

    def norm(name: str, x: Tensor) -> Tensor:
        return rms_norm(x, weights[f"{name}.weight"], config.rms_norm_eps)

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def attention(name: str, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = linear(f"{name}.qkv", x).view(*x.shape[:-1], heads + 2 * kv_heads, config.head_dim).transpose(1, 2)
        q, k, v = qkv[:, :heads], qkv[:, heads:-kv_heads], qkv[:, -kv_heads:]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=heads != kv_heads)
        return linear(f"{name}.output", out.transpose(1, 2).flatten(2))

    def step(token_ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cos, sin = rotary_tables(config, token_ids.shape[1], token_ids.device)
        x = F.embedding(token_ids, weights["embedding.weight"])
        for layer in range(config.num_layers):
            name = f"layers.{layer}"
            x = x + attention(f"{name}.attention", norm(f"{name}.attention_norm", x), cos, sin)
            gate_up = linear(f"{name}.mlp.gate_up", norm(f"{name}.mlp_norm", x))
            x = x + linear(f"{name}.mlp.down", silu_mul(gate_up))
        logits = linear("lm_head", norm("final_norm", x.flatten(0, 1)[rows])).float()
        p = logits.softmax(-1)
        confidence, token = p.max(-1)
        return -(p * (p + 1e-12).log()).sum(-1), token, confidence

    return step


@torch.inference_mode()
def peer_seconds(config: ModelConfig, weights: Mapping[str, Tensor], tokens: int, rows: int) -> dict[str, float]:
    """Median seconds of one full step of batch 1 in plain torch: eager, and compiled with CUDA graphs."""
    device = weights["lm_head.weight"].device
    ids = torch.randint(0, config.vocab_size - 1, (1, tokens), device=device)
    scored = torch.arange(tokens - rows, tokens, device=device)
    step = plain_step(config, weights)
    for weight in weights.values():  # as a module's parameters are: a compiled graph reads them where they lie
        torch._dynamo.mark_static_address(weight)
    compiled = torch.compile(step, mode="reduce-overhead")
    return {
        "torch, eager": _seconds(lambda: step(ids, scored)),
        "torch.compile with CUDA graphs": _seconds(lambda: compiled(ids, scored)),
    }


def _seconds(run: Callable[[], object], warm_up: int = 5, runs: int = 15) -> float:
    for _ in range(warm_up):
        run()
    return statistics.median(gpu_seconds(run) for _ in range(runs))
