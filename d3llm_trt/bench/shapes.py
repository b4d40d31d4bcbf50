"""The published shapes of d3LLM networks (spec A.1); nothing heavy is imported, so the command line can name them."""

from __future__ import annotations

from d3llm_trt.model.config import ModelConfig

SHAPES = {
    "llada-8b": ModelConfig(
        family="llada", vocab_size=126464, hidden_size=4096, intermediate_size=12288, num_layers=32, num_heads=32,
        num_kv_heads=32, head_dim=128, rms_norm_eps=1e-5, rope_theta=500000.0, max_position_embeddings=4096,
        mask_token_id=126336, eos_token_id=126081, pad_token_id=126081,
    ),
    "dream-7b": ModelConfig(
        family="dream", vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_layers=28, num_heads=28,
        num_kv_heads=4, head_dim=128, rms_norm_eps=1e-6, rope_theta=1000000.0, max_position_embeddings=131072,
        mask_token_id=151666, eos_token_id=151643, pad_token_id=151643,
    ),
}  # fmt: skip
