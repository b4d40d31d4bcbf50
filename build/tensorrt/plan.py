"""Packed weights to a plan: quantization, lowering, compilation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from d3llm_trt.build.quantize import fp8_weights
from d3llm_trt.build.tensorrt.compile import compile_plan, make_builder
from d3llm_trt.build.tensorrt.network import build_network
from d3llm_trt.config import EngineConfig
from d3llm_trt.errors import BuildError
from d3llm_trt.manifest import FileFacts
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.progress import OnProgress
from d3llm_trt.tensorrt_module import load_tensorrt


def build_plan(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    settings: EngineConfig,
    path: Path,
    progress: OnProgress | None = None,
    canvases: Sequence[Tensor] = (),
) -> FileFacts:
    """Build the plan into ``path`` from unquantized weights; FP8 scales are measured on ``canvases``.

    Raises BuildError, or EngineError without TensorRT.
    """
    trt, options = load_tensorrt(settings.backend), settings.plan
    if settings.backend == "tensorrt-rtx" and options.strip_weights and not torch.cuda.is_available():
        # The code that refits weights is compiled on a GPU when the plan is built.
        raise BuildError("strip_weights with tensorrt-rtx needs a GPU where the plan is built; leave it out here")
    builder, messages = make_builder(trt)
    if settings.quantization is not None:
        weights = fp8_weights(config, weights, canvases, progress)
    try:
        built = build_network(trt, builder, config, weights, settings)
    except BuildError as error:
        raise BuildError(f"{error}: {messages.last_errors()}") from error
    return compile_plan(trt, builder, messages, built, options, path, progress)
