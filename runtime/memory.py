"""Whether a torch engine fits the free memory of a GPU, planned before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

import torch

from d3llm_trt.capacity import Capacity, estimate, shown_bytes
from d3llm_trt.config import EngineConfig
from d3llm_trt.errors import EngineError
from d3llm_trt.model.config import ModelConfig

# Bytes for the libraries of a CUDA context, for graphs, and for what allocators round up.
RESERVE = 512 << 20


def check_memory(
    config: ModelConfig, settings: EngineConfig, device: torch.device, max_batch_size: int | None = None
) -> None:
    """Raise EngineError naming what is too large for the GPU, and the largest batch that is not.

    Weights, KV cache and the activations of the largest pass must fit what is free now.
    TensorRT plans its own memory, and can stream weights.
    """
    if device.type != "cuda" or settings.backend != "torch":
        return
    batch, free = max_batch_size or settings.max_batch_size, _free_bytes(device)
    planned = _capacity(config, settings, batch)
    needed = planned.at_run_time + RESERVE
    if needed <= free:
        return
    most = largest_batch(config, settings, batch, free)
    smaller_engine = "use a GPU with more memory, quantization='fp8', or build with a lower max_seq_len"
    raise EngineError(
        f"max_batch_size {batch} x max_seq_len {settings.max_seq_len} takes {shown_bytes(needed)} (weights "
        f"{shown_bytes(planned.weights)}, KV cache {shown_bytes(planned.kv_cache)}, activations "
        f"{shown_bytes(planned.activations)}), and {device} has {shown_bytes(free)} free; "
        + (f"max_batch_size up to {most} fits" if most else smaller_engine)
    )


def largest_batch(config: ModelConfig, settings: EngineConfig, most: int, free: int) -> int:
    """The most slots, up to ``most``, with which the engine fits ``free`` bytes; 0 if none does."""
    sizes = range(most, 0, -1)
    return next((size for size in sizes if _capacity(config, settings, size).at_run_time + RESERVE <= free), 0)


def _capacity(config: ModelConfig, settings: EngineConfig, batch: int) -> Capacity:
    tokens = min(settings.max_num_tokens, batch * settings.max_seq_len)
    return estimate(config, replace(settings, max_batch_size=batch, max_num_tokens=tokens))


def _free_bytes(device: torch.device) -> int:
    """Bytes that are free on the GPU, with those that torch keeps for itself and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
