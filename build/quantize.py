"""FP8: scales from the peaks of a calibration, weights packed with them, and what that costs a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt.build.calibration import Calibration, calibrate, generated_canvases, ops_over
from d3llm_trt.errors import BuildError
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import packed_tensors, quantized_layers
from d3llm_trt.model.torch_ops import TorchOps
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins.reference import fp8_linear, fp8_scale, to_fp8
from d3llm_trt.progress import OnProgress

MULTIPLE = 16


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


def check_sizes(config: ModelConfig) -> None:
    """Raise BuildError naming a linear layer that the FP8 products of a GPU cannot take."""
    shapes = config.tensor_shapes()
    for name in quantized_layers(config):
        shape = shapes[f"{name}.weight"]
        if any(size % MULTIPLE for size in shape):
            allowed = f"multiples of {MULTIPLE} with quantization 'fp8'; leave it out"
            raise BuildError(f"the weight of {name} is {' x '.join(map(str, shape))}; allowed: {allowed}")


def quantize_fp8(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    canvases: Sequence[Tensor] = (),
    progress: OnProgress | None = None,
) -> Fp8Weights:
    """Quantize all linear layers but the LM head, per tensor, with input scales from :func:`calibrate`.

    Without ``canvases`` it takes generated ones.
    """
    found = calibrate(config, weights, canvases or generated_canvases(config), progress)
    scales = scales_for(config, weights, found)
    names = quantized_layers(config)
    tensors = {f"{name}.weight": to_fp8(weights[f"{name}.weight"], scales.weights[name]) for name in names}
    return Fp8Weights(tensors, scales.weights, scales.inputs)


def scales_for(config: ModelConfig, weights: Mapping[str, Tensor], calibration: Calibration) -> Scales:
    """Scales in which the largest weight, and the largest input that was seen, are the largest FP8 number.

    Raises BuildError naming a layer whose input overflowed.
    """
    names = quantized_layers(config)
    for name in calibration.peaks:
        if not calibration.peaks[name].isfinite():
            dtype = str(weights["final_norm.weight"].dtype).removeprefix("torch.")
            fix = "build with dtype bfloat16" if dtype == "float16" else "check the weights"
            raise BuildError(f"the input of {name} is {calibration.peaks[name]:g} while calibrating in {dtype}; {fix}")
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


class _Comparison(TorchOps):
    """Compares the output of every layer that has scales with its output in FP8, from the same input."""

    scales: Scales
    errors: dict[str, float]
    progress: OnProgress | None

    def linear(self, name: str, x: Tensor) -> Tensor:
        """As TorchOps'."""
        exact = super().linear(name, x)
        if name in self.scales.weights:
            weight_scale, x_scale = self.scales.weights[name], self.scales.inputs[name]
            bias = self._weights.get(f"{name}.bias")
            small = to_fp8(x, x_scale), to_fp8(self._weights[f"{name}.weight"], weight_scale)
            rough = fp8_linear(*small, x_scale, weight_scale, bias, torch.float32)
            self.errors[name] = float((rough - exact.float()).norm() / exact.float().norm().clamp(min=1e-12))
            if self.progress is not None:
                self.progress("compare layers", len(self.errors), len(self.scales.weights))
        return exact


@torch.inference_mode()
def output_errors(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    scales: Scales,
    canvas: Tensor,
    progress: OnProgress | None = None,
) -> dict[str, float]:
    """By quantized layer: the norm of its output's error over the norm of its output.

    In one pass over ``canvas`` that asks for the rows of its masks.
    """
    ops = ops_over(_Comparison, config, weights, len(canvas))
    ops.scales, ops.errors, ops.progress = scales, {}, progress
    forward(config, ops, canvas, (canvas == config.mask_token_id).nonzero()[:, 0])
    return ops.errors
