"""FP8: scales measured on canvases of the model itself, and weights packed with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins.reference import FP8_MAX, to_fp8

LENGTH, ROUNDS = 128, 4
SEED = 0


@dataclass(frozen=True)
class Fp8Weights:
    """FP8 tensors by the name of their weight, and float32 scales by the name of their linear layer."""

    tensors: dict[str, Tensor]
    weight_scales: dict[str, Tensor]
    input_scales: dict[str, Tensor]


def quantize_fp8(config: ModelConfig, weights: Mapping[str, Tensor]) -> Fp8Weights:
    """Quantize all linear layers but the LM head, per tensor, with input scales from :func:`measure_inputs`."""
    peaks = measure_inputs(config, weights)
    linear = [name for name in peaks if name != "lm_head"]
    weight_scales = {name: _scale(weights[f"{name}.weight"].abs().amax()) for name in linear}
    tensors = {f"{name}.weight": to_fp8(weights[f"{name}.weight"], weight_scales[name]) for name in linear}
    return Fp8Weights(tensors, weight_scales, {name: _scale(peaks[name]) for name in linear})


def _scale(peak: Tensor) -> Tensor:
    return (peak.float() / FP8_MAX).clamp(min=1e-12)


class _Observer(TorchOps):
    """Remembers the largest input of every linear layer in ``peaks``."""

    peaks: dict[str, Tensor]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """As TorchOps'."""
        peak = x.abs().amax().float()
        self.peaks[name] = torch.maximum(self.peaks.get(name, peak), peak)
        return super().linear(name, x)


@torch.inference_mode()
def measure_inputs(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Largest absolute input of every linear layer while canvases are unmasked, a quarter of them per pass."""
    generator = torch.Generator().manual_seed(SEED)
    length = min(LENGTH, config.max_position_embeddings)
    canvas = torch.randint(config.vocab_size, (length,), generator=generator)
    canvas[length // 3 :] = config.mask_token_id
    peaks: dict[str, Tensor] = {}
    for done in range(1, ROUNDS + 1):
        logits = _observed_pass(config, weights, canvas, peaks)
        logits[:, config.mask_token_id] = -torch.inf
        chosen = (canvas == config.mask_token_id) & (torch.rand(length, generator=generator) < done / ROUNDS)
        canvas = torch.where(chosen, logits.argmax(-1), canvas)
    return peaks


def _observed_pass(
    config: ModelConfig, weights: Mapping[str, Tensor], canvas: Tensor, peaks: dict[str, Tensor]
) -> Tensor:
    dtype, length = weights["final_norm.weight"].dtype, len(canvas)
    shape = (config.num_layers, 1, 2, config.num_kv_heads, length, config.head_dim)
    cache, tables = torch.empty(shape, dtype=dtype), rotary_tables(config, length)
    ops = _Observer(config, weights, cache, Windows.whole(length), tables)
    ops.peaks = peaks
    return forward(config, ops, canvas, torch.arange(length)).float()
