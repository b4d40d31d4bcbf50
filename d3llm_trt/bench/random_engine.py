"""Engines of the published shapes with random weights: as fast as the real ones, and nothing to download."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from d3llm_trt.bench.shapes import SHAPES
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import quantized_layers
from d3llm_trt.plugins.reference import fp8_scale, to_fp8
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.engines.torch_engine import TorchEngine, check_precision

DEVIATION = 0.02  # of weights, as models are initialised
LARGEST_INPUT = 8.0  # of a linear layer, which rows of norms and gated MLPs over these weights rarely pass


def random_engine(
    shape: str,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    max_batch_size: int,
    max_seq_len: int,
    layers: int | None = None,
    quantization: str | None = None,
) -> TorchEngine:
    """A torch engine of one of ``SHAPES``; ``layers`` cuts the network short.

    Raises EngineError if it does not fit, and ConfigError or EngineError on a quantization that does not go with the
    dtype or the device.
    """
    config, tokens = _config(shape, layers), max_batch_size * max_seq_len
    spec = EngineSpec(config, "torch", dtype, device, max_batch_size, max_seq_len, tokens, quantization)
    check_precision(spec)
    _, weights = random_weights(shape, device=device, dtype=dtype, layers=layers, quantization=quantization)
    return TorchEngine(spec, weights)


def _config(shape: str, layers: int | None) -> ModelConfig:
    return SHAPES[shape] if layers is None else replace(SHAPES[shape], num_layers=layers)


def random_weights(
    shape: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | None = None,
    quantization: str | None = None,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Packed weights by name, norms 1 and the rest normally distributed; quantized with the same scale everywhere."""
    config = _config(shape, layers)
    quantized = () if quantization is None else quantized_layers(config)
    generator = torch.Generator(device).manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, size in config.tensor_shapes().items():
        weight = torch.empty(size, dtype=dtype, device=device)
        weights[name] = weight.fill_(1.0) if "norm" in name else weight.normal_(0, DEVIATION, generator=generator)
        if (layer := name.removesuffix(".weight")) in quantized:
            weights |= _quantized(layer, weight)
    return config, weights


def _quantized(layer: str, weight: Tensor) -> dict[str, Tensor]:
    scale, largest = fp8_scale(weight.abs().amax()), torch.tensor(LARGEST_INPUT, device=weight.device)
    return {
        f"{layer}.weight": to_fp8(weight, scale),
        f"{layer}.weight_scale": scale,
        f"{layer}.input_scale": fp8_scale(largest),
    }
