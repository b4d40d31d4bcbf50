"""What an engine will take, estimated before it is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

from d3llm_trt.config import EngineConfig
from d3llm_trt.dtypes import DTYPES
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import packed_tensors, quantized_layers

# Peak anonymous memory of TensorRT's builder over the packed weights, and where the plan is left without them
# (benchmarks/results/plan_scale.json, plan_scale_stripped.json).
PLAN_MEMORY, STRIPPED_MEMORY = 1.1, 3.8
# What quantizing a weight keeps in float32: the weight, the difference to it, and what both are made from.
FLOAT32_COPIES = 3
# Candidates of one request in a pass: masks of the blocks that are open, rarely more than eight of them.
SCORED_ROWS = 256


@dataclass(frozen=True)
class Capacity:
    """Bytes: at run time ``weights``, ``kv_cache`` and ``activations``; ``disk`` of the engine; ``memory`` to build."""

    weights: int
    kv_cache: int
    activations: int
    disk: int
    memory: int

    @property
    def at_run_time(self) -> int:
        """Bytes at run time together."""
        return self.weights + self.kv_cache + self.activations

    def line(self) -> str:
        """One line for people."""
        weights, cache, activations, disk, memory = map(shown_bytes, vars(self).values())
        run = f"weights {weights}, KV cache {cache}, activations {activations}"
        return f"at run time: {run}; on disk: {disk}; memory to build: {memory}"


def estimate(config: ModelConfig, settings: EngineConfig) -> Capacity:
    """What an engine will take. Activations are those of the largest pass, SCORED_ROWS of each request scored."""
    size, tokens = DTYPES[settings.dtype].num_bytes, settings.max_num_tokens
    forms = packed_tensors(config, settings.dtype, settings.quantization)
    weights = sum(form.num_bytes for form in forms.values())
    widest = max(2 * config.intermediate_size, config.qkv_size + config.num_heads * config.head_dim)
    scored = min(tokens, settings.max_batch_size * SCORED_ROWS)
    activations = size * (tokens * (3 * config.hidden_size + widest) + scored * config.vocab_size)
    return Capacity(
        weights=weights,
        kv_cache=settings.max_batch_size * settings.max_seq_len * config.kv_values_per_token * size,
        activations=activations,
        disk=weights,
        memory=_build_bytes(config, settings),
    )


def _build_bytes(config: ModelConfig, settings: EngineConfig) -> int:
    """Anonymous memory at the peak of a build; weights on the disk are mapped."""
    size, shapes = DTYPES[settings.dtype].num_bytes, config.tensor_shapes()
    if settings.tensorrt is not None:
        factor = STRIPPED_MEMORY if settings.tensorrt.strip_weights else PLAN_MEMORY
        return int(config.num_parameters * size * factor)
    streamed = max(math.prod(shape) for shape in shapes.values()) * size
    if settings.quantization is None:
        return streamed
    quantized = max(math.prod(shapes[f"{name}.weight"]) for name in quantized_layers(config))
    return max(streamed, quantized * FLOAT32_COPIES * DTYPES["float32"].num_bytes)


def shown_bytes(count: int) -> str:
    """A size for people."""
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.4g} {unit}"
