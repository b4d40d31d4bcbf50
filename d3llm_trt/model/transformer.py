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
        x, normed = ops.add_linear_norm(x, output, attended, f"{name}.mlp_norm", feeds=gate_up)
        hidden = ops.gated_mlp(f"{name}.mlp", ops.linear(gate_up, normed), feeds=down)
        if layer + 1 < config.num_layers:
            norm, feeds = f"{following}.attention_norm", f"{following}.attention.qkv"
            x, normed = ops.add_linear_norm(x, down, hidden, norm, feeds=feeds)
        else:
            x = ops.add_linear(x, down, hidden)
    rows = ops.gather_rows("logit_rows", x, logit_rows)
    return ops.linear("lm_head", ops.rms_norm("final_norm", rows, feeds="lm_head"))
