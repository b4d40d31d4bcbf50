"""What an engine will take, estimated before it is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

from d3llm_trt.config import BuildConfig
from d3llm_trt.model.config import ModelConfig

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
# Peak anonymous memory of TensorRT's builder over the packed weights (benchmarks/results/plan_scale.json).
PLAN_MEMORY = 1.1


@dataclass(frozen=True)
class Capacity:
    """Bytes: at run time ``weights``, ``kv_cache`` and ``activations``; ``disk`` of the engine; ``memory`` to build."""

    weights: int
    kv_cache: int
    activations: int
    disk: int
    memory: int

    def line(self) -> str:
        """One line for people."""
        weights, cache, activations, disk, memory = map(
            shown_bytes, (self.weights, self.kv_cache, self.activations, self.disk, self.memory)
        )
        run = f"weights {weights}, KV cache {cache}, activations {activations}"
        return f"at run time: {run}; on disk: {disk}; memory to build: {memory}"


def estimate(config: ModelConfig, settings: BuildConfig) -> Capacity:
    """Of a resolved configuration. Activations are those of a pass with all its rows through the LM head."""
    size, seq, tokens = DTYPE_BYTES[settings.dtype], settings.max_seq_len, settings.max_num_tokens
    assert seq is not None and tokens is not None
    weights = _weight_bytes(config, size, settings.quantization)
    widest = max(2 * config.intermediate_size, config.qkv_size + config.num_heads * config.head_dim)
    activations = tokens * size * (3 * config.hidden_size + widest + config.vocab_size)
    is_plan = settings.backend != "torch"
    largest = max(math.prod(shape) for shape in config.tensor_shapes().values()) * size
    return Capacity(
        weights=weights,
        kv_cache=settings.max_batch_size * seq * config.kv_values_per_token * size,
        activations=activations,
        disk=weights,
        memory=int(config.num_parameters * size * PLAN_MEMORY) if is_plan else largest,
    )


def _weight_bytes(config: ModelConfig, size: int, quantization: str | None) -> int:
    """Linear layers of the blocks take one byte per value in FP8; everything else ``size``."""
    total = 0
    for name, shape in config.tensor_shapes().items():
        small = quantization == "fp8" and name.startswith("layers.") and len(shape) == 2
        total += math.prod(shape) * (1 if small else size)
    return total


def shown_bytes(count: int) -> str:
    """A size for people."""
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.4g} {unit}"
