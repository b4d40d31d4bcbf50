"""FP8: scales from the peaks of a calibration, weights packed with them, and what that costs a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from d3llm_trt.build.calibration import Calibration, WatchedOps, calibrate
from d3llm_trt.dtypes import FP8, dtype_name
from d3llm_trt.errors import BuildError
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import packed_tensors, quantized_layers
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins.reference import fp8_linear, fp8_scale, to_fp8
from d3llm_trt.progress import OnProgress

MULTIPLE = 16


def check_sizes(config: ModelConfig) -> None:
    """Raise BuildError naming a linear layer that the FP8 products of a GPU cannot take."""
    shapes = config.tensor_shapes()
    for name in quantized_layers(config):
        shape = shapes[f"{name}.weight"]
        if any(size % MULTIPLE for size in shape):
            allowed = f"multiples of {MULTIPLE} with quantization 'fp8'; leave it out"
            raise BuildError(f"the weight of {name} is {' x '.join(map(str, shape))}; allowed: {allowed}")


def fp8_weights(
    config: ModelConfig, weights: Mapping[str, Tensor], canvases: Sequence[Tensor], progress: OnProgress | None = None
) -> dict[str, Tensor]:
    """Every tensor of :func:`packed_tensors` for fp8, with scales from a calibration on ``canvases``."""
    scales = scales_for(config, weights, calibrate(config, weights, canvases, progress))
    return dict(packed_fp8(config, weights, scales))


def scales_for(config: ModelConfig, weights: Mapping[str, Tensor], calibration: Calibration) -> dict[str, Tensor]:
    """``{layer}.weight_scale`` and ``{layer}.input_scale``: float32 scalars for every quantized layer.

    In them the largest weight, and the largest input that was seen, are the largest FP8 number.

    Raises BuildError naming a layer whose input overflowed.
    """
    for name, peak in calibration.peaks.items():
        if not peak.isfinite():
            dtype = dtype_name(weights["final_norm.weight"].dtype)
            fix = "build with dtype bfloat16" if dtype == "float16" else "check the weights"
            raise BuildError(f"the input of {name} is {peak:g} while calibrating in {dtype}; {fix}")
    scales: dict[str, Tensor] = {}
    for name in quantized_layers(config):
        scales[f"{name}.weight_scale"] = fp8_scale(torch.stack(weights[f"{name}.weight"].aminmax()).abs().amax())
        scales[f"{name}.input_scale"] = fp8_scale(calibration.peaks[name])
    return scales


def packed_fp8(
    config: ModelConfig, weights: Mapping[str, Tensor], scales: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of :func:`packed_tensors` for fp8 in its order; one quantized weight at a time is in memory."""
    for name, form in packed_tensors(config, "bfloat16", "fp8").items():
        if form.dtype == FP8:
            yield name, to_fp8(weights[name], scales[f"{name}_scale"])
        else:
            yield name, scales[name] if name in scales else weights[name]


@torch.inference_mode()
def output_errors(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    scales: Mapping[str, Tensor],
    canvas: Tensor,
    progress: OnProgress | None = None,
) -> dict[str, float]:
    """For each quantized layer the norm of its output's error over the norm of its output.

    They are measured in one pass over ``canvas`` that asks for the rows of its masks.
    """
    errors: dict[str, float] = {}

    def compare(name: str, x: Tensor, exact: Tensor) -> None:
        if f"{name}.weight_scale" not in scales:
            return
        weight_scale, x_scale = scales[f"{name}.weight_scale"], scales[f"{name}.input_scale"]
        small = to_fp8(x, x_scale), to_fp8(weights[f"{name}.weight"], weight_scale)
        rough = fp8_linear(*small, x_scale, weight_scale, weights.get(f"{name}.bias"), torch.float32)
        errors[name] = float((rough - exact.float()).norm() / exact.float().norm().clamp(min=1e-12))
        if progress is not None:
            progress("compare layers", len(errors), len(scales) // 2)

    ops = WatchedOps(config, weights, len(canvas), compare)
    forward(config, ops, canvas, (canvas == config.mask_token_id).nonzero()[:, 0])
    return errors
