"""The forward pass of LLaDA and Dream, once, against the Ops protocol (spec A.3)."""

from __future__ import annotations

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.ops import Ops, Tensor
from d3llm_trt.model.packing import layer_linears


def forward(config: ModelConfig, ops: Ops[Tensor], token_ids: Tensor, logit_rows: Tensor) -> Tensor:
    """Logits ``[R, vocab]`` of the packed rows ``logit_rows[R]`` for the tokens ``token_ids[T]``.

    Positions, window layout and KV cache belong to ``ops``. Dream's right shift is not applied here: whoever
    chooses ``logit_rows`` asks for the row that scores the wanted position.
    """
    x = ops.embedding("embedding", token_ids)
    normed = ops.rms_norm("layers.0.attention_norm", x, feeds="layers.0.attention.qkv")
    for layer in range(config.num_layers):
        name, following = f"layers.{layer}", f"layers.{layer + 1}"
        qkv, output, gate_up, down = layer_linears(layer)
        attended = ops.attention(f"{name}.attention", layer, ops.linear(qkv, normed), feeds=output)
        last = layer + 1 == config.num_layers
        if last:  # All K/V are written: the other rows have nothing left to do.
            x = ops.gather_rows(f"{name}.residual_rows", x, logit_rows)
            attended = ops.gather_rows(f"{name}.attended_rows", attended, logit_rows)
        x, normed = ops.add_linear_norm(x, output, attended, f"{name}.mlp_norm", feeds=gate_up)
        hidden = ops.gated_mlp(f"{name}.mlp", ops.linear(gate_up, normed), feeds=down)
        norm, feeds = f"{following}.attention_norm", f"{following}.attention.qkv"
        if last:
            norm, feeds = "final_norm", "lm_head"
        x, normed = ops.add_linear_norm(x, down, hidden, norm, feeds=feeds)
    return ops.linear("lm_head", normed)
