"""Engines of the published shapes with random weights: as fast as the real ones, and nothing to download."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.engines.torch_engine import TorchEngine

# Published hyper-parameters (spec A.1).
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
DEVIATION = 0.02  # of weights, as models are initialised


def random_engine(
    shape: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    max_batch_size: int,
    max_seq_len: int,
    layers: int | None = None,
) -> TorchEngine:
    """A torch engine of one of ``SHAPES``; ``layers`` cuts the network short. Raises EngineError if it does not fit."""
    config, weights = random_weights(shape, device=device, dtype=dtype, layers=layers)
    spec = EngineSpec(config, "torch", dtype, device, max_batch_size, max_seq_len, max_batch_size * max_seq_len)
    return TorchEngine(spec, weights)


def random_weights(
    shape: str, *, device: torch.device, dtype: torch.dtype, layers: int | None = None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Packed weights by name, norms 1 and the rest normally distributed."""
    config = SHAPES[shape] if layers is None else replace(SHAPES[shape], num_layers=layers)
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, size in config.tensor_shapes().items():
        weight = torch.empty(size, dtype=dtype, device=device)
        weights[name] = weight.fill_(1.0) if "norm" in name else weight.normal_(0, DEVIATION, generator=generator)
    return config, weights
