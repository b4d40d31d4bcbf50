"""Packed weights to a plan: sizes, quantization, lowering, compilation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from d3llm_trt.build.quantize import quantize_fp8
from d3llm_trt.build.tensorrt.compile import compile_plan, make_builder
from d3llm_trt.build.tensorrt.network import Sizes, build_network
from d3llm_trt.build.tensorrt.ops import LoweredWeights
from d3llm_trt.config import BuildConfig
from d3llm_trt.errors import BuildError
from d3llm_trt.manifest import FileFacts
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.progress import OnProgress
from d3llm_trt.tensorrt_module import load_tensorrt


def build_plan(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    settings: BuildConfig,
    path: Path,
    progress: OnProgress | None = None,
    canvases: Sequence[Tensor] = (),
) -> FileFacts:
    """Build the plan of a resolved configuration into ``path``; FP8 scales are measured on ``canvases``.

    Raises BuildError, or EngineError without TensorRT.
    """
    assert settings.tensorrt is not None
    trt = load_tensorrt(settings.backend)
    if settings.backend == "tensorrt-rtx" and settings.tensorrt.strip_weights and not torch.cuda.is_available():
        # The code that refits weights is compiled on a GPU when the plan is built.
        raise BuildError("strip_weights with tensorrt-rtx needs a GPU where the plan is built; leave it out here")
    builder, messages = make_builder(trt)
    lowered = lowered_weights(config, weights, settings.quantization, canvases, progress)
    dtype, sizes = getattr(torch, settings.dtype), plan_sizes(settings)
    try:
        built = build_network(trt, builder, config, lowered, dtype, sizes, settings.tensorrt)
    except BuildError as error:
        raise BuildError(f"{error}: {messages.last_errors()}") from error
    return compile_plan(trt, builder, messages, built, settings.tensorrt, path, progress)


def lowered_weights(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    quantization: str | None,
    canvases: Sequence[Tensor] = (),
    progress: OnProgress | None = None,
) -> LoweredWeights:
    """The weights as the network takes them."""
    if quantization is None:
        return LoweredWeights(weights, {}, {})
    packed = quantize_fp8(config, weights, canvases, progress)
    return LoweredWeights({**weights, **packed.tensors}, packed.weight_scales, packed.input_scales)


def plan_sizes(settings: BuildConfig) -> Sizes:
    """What the plan of a resolved configuration is built for."""
    options, seq = settings.tensorrt, settings.max_seq_len
    assert options is not None and options.token_buckets is not None and seq is not None
    slots = settings.max_batch_size
    return Sizes(slots, seq, tuple(sorted({1, slots})), options.token_buckets)
