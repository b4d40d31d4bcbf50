"""FP8: scales measured on canvases of the model itself, weights packed with them, and what that costs a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from d3llm_trt.errors import BuildError
from d3llm_trt.manifest import Progress
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import packed_tensors, quantized_layers
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins.reference import fp8_linear, fp8_scale, to_fp8

LENGTH, ROUNDS = 128, 4
SEED = 0
MULTIPLE = 16
_Ops = TypeVar("_Ops", bound=TorchOps)


@dataclass(frozen=True)
class Scales:
    """Float32 scalars by the name of the linear layer: of its weight, and of its input."""

    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]


@dataclass(frozen=True)
class Fp8Weights:
    """FP8 tensors by the name of their weight, and float32 scales by the name of their linear layer."""

    tensors: dict[str, Tensor]
    weight_scales: dict[str, Tensor]
    input_scales: dict[str, Tensor]


@dataclass
class Calibration:
    """What passes over canvases found: the largest input of each linear layer, and the last canvas that was run."""

    peaks: dict[str, Tensor] = field(default_factory=dict)
    canvas: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def check_sizes(config: ModelConfig) -> None:
    """Raise BuildError naming a linear layer that the FP8 products of a GPU cannot take."""
    shapes = config.tensor_shapes()
    for name in quantized_layers(config):
        shape = shapes[f"{name}.weight"]
        if any(size % MULTIPLE for size in shape):
            allowed = f"multiples of {MULTIPLE} with quantization 'fp8'; leave it out"
            raise BuildError(f"the weight of {name} is {' x '.join(map(str, shape))}; allowed: {allowed}")


def quantize_fp8(config: ModelConfig, weights: Mapping[str, Tensor]) -> Fp8Weights:
    """Quantize all linear layers but the LM head, per tensor, with input scales from :func:`calibrate`."""
    scales = scales_for(config, weights, calibrate(config, weights))
    names = quantized_layers(config)
    tensors = {f"{name}.weight": to_fp8(weights[f"{name}.weight"], scales.weights[name]) for name in names}
    return Fp8Weights(tensors, scales.weights, scales.inputs)


def scales_for(config: ModelConfig, weights: Mapping[str, Tensor], calibration: Calibration) -> Scales:
    """Scales in which the largest weight, and the largest input that was seen, are the largest FP8 number."""
    names = quantized_layers(config)
    largest = {name: torch.stack(weights[f"{name}.weight"].aminmax()).abs().amax() for name in names}
    return Scales(
        {name: fp8_scale(peak) for name, peak in largest.items()},
        {name: fp8_scale(calibration.peaks[name]) for name in names},
    )


def packed_fp8(config: ModelConfig, weights: Mapping[str, Tensor], scales: Scales) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of :func:`packed_tensors` for fp8 in its order; one quantized weight at a time is in memory."""
    for name, form in packed_tensors(config, "bfloat16", "fp8").items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight_scale":
            yield name, scales.weights[layer]
        elif kind == "input_scale":
            yield name, scales.inputs[layer]
        else:
            quantized = form.dtype == "float8_e4m3fn"
            yield name, to_fp8(weights[name], scales.weights[layer]) if quantized else weights[name]


class _Observer(TorchOps):
    """Remembers the largest input of every linear layer in ``peaks``."""

    peaks: dict[str, Tensor]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """As TorchOps'."""
        peak = x.abs().amax().float()
        self.peaks[name] = torch.maximum(self.peaks.get(name, peak), peak)
        return super().linear(name, x)


class _Comparison(TorchOps):
    """Compares the output of every layer that has scales with its output in FP8, from the same input."""

    scales: Scales
    errors: dict[str, float]

    def linear(self, name: str, x: Tensor) -> Tensor:
        """As TorchOps'."""
        exact = super().linear(name, x)
        if name in self.scales.weights:
            weight_scale, x_scale = self.scales.weights[name], self.scales.inputs[name]
            bias = self._weights.get(f"{name}.bias")
            small = to_fp8(x, x_scale), to_fp8(self._weights[f"{name}.weight"], weight_scale)
            rough = fp8_linear(*small, x_scale, weight_scale, bias, torch.float32)
            self.errors[name] = float((rough - exact.float()).norm() / exact.float().norm().clamp(min=1e-12))
        return exact


@torch.inference_mode()
def calibrate(config: ModelConfig, weights: Mapping[str, Tensor], progress: Progress | None = None) -> Calibration:
    """Run canvases while they are unmasked, a quarter of their masks per pass; the first third is random tokens."""
    generator = torch.Generator().manual_seed(SEED)
    length = min(LENGTH, config.max_position_embeddings)
    canvas = torch.randint(config.vocab_size, (length,), generator=generator)
    canvas[length // 3 :] = config.mask_token_id
    found = Calibration()
    for done in range(1, ROUNDS + 1):
        found.canvas = canvas
        ops = _ops(_Observer, config, weights, length)
        ops.peaks = found.peaks
        logits = forward(config, ops, canvas, torch.arange(length)).float()
        logits[:, config.mask_token_id] = -torch.inf
        chosen = (canvas == config.mask_token_id) & (torch.rand(length, generator=generator) < done / ROUNDS)
        canvas = torch.where(chosen, logits.argmax(-1), canvas)
        if progress is not None:
            progress("calibrate", done, ROUNDS + 1)
    return found


@torch.inference_mode()
def output_errors(
    config: ModelConfig, weights: Mapping[str, Tensor], scales: Scales, canvas: Tensor
) -> dict[str, float]:
    """By quantized layer: the norm of its output's error over the norm of its output, in one pass over ``canvas``."""
    ops = _ops(_Comparison, config, weights, len(canvas))
    ops.scales, ops.errors = scales, {}
    forward(config, ops, canvas, torch.arange(1))
    return ops.errors


def _ops(kind: type[_Ops], config: ModelConfig, weights: Mapping[str, Tensor], length: int) -> _Ops:
    dtype = weights["final_norm.weight"].dtype
    shape = (config.num_layers, 1, 2, config.num_kv_heads, length, config.head_dim)
    return kind(config, weights, torch.empty(shape, dtype=dtype), Windows.whole(length), rotary_tables(config, length))
