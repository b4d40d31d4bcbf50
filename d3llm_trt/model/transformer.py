"""The forward pass of LLaDA and Dream, once, against the Ops protocol (spec A.3)."""

from __future__ import annotations

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.ops import Ops, Tensor


def forward(config: ModelConfig, ops: Ops[Tensor], token_ids: Tensor, logit_rows: Tensor) -> Tensor:
    """Logits ``[R, vocab]`` of the packed rows ``logit_rows[R]`` for the tokens ``token_ids[T]``.

    Positions, window layout and KV cache belong to ``ops``. Dream's right shift is not applied here: whoever
    chooses ``logit_rows`` asks for the row that scores the wanted position.
    """
    x = ops.embedding("embedding", token_ids)
    for layer in range(config.num_layers):
        name = f"layers.{layer}"
        normed = ops.rms_norm(f"{name}.attention_norm", x)
        qkv = ops.linear(f"{name}.attention.qkv", normed)
        attended = ops.attention(f"{name}.attention", layer, qkv)
        x = ops.add_linear(f"{name}.attention.residual", x, f"{name}.attention.output", attended)
        normed = ops.rms_norm(f"{name}.mlp_norm", x)
        hidden = ops.gated_mlp(f"{name}.mlp", ops.linear(f"{name}.mlp.gate_up", normed))
        x = ops.add_linear(f"{name}.mlp.residual", x, f"{name}.mlp.down", hidden)
    rows = ops.gather_rows("logit_rows", x, logit_rows)
    return ops.linear("lm_head", ops.rms_norm("final_norm", rows))
