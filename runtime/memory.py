"""Whether a torch engine fits the free memory of a GPU, planned before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

import torch

from d3llm_trt.capacity import Capacity, estimate, shown_bytes
from d3llm_trt.errors import EngineError
from d3llm_trt.manifest import Manifest
from d3llm_trt.runtime.engines.base import EngineSpec

# Bytes of a CUDA context's libraries, graphs, and what allocators round up.
RESERVE = 512 << 20


def check_memory(manifest: Manifest, spec: EngineSpec) -> None:
    """Raise EngineError naming what is too large for the GPU, and the largest batch that is not.

    Weights, KV cache and the activations of the largest pass must fit what is free now. TensorRT plans its own memory,
    and can stream weights.
    """
    if spec.device.type != "cuda" or spec.backend != "torch":
        return
    free, planned = _free_bytes(spec.device), _capacity(manifest, spec, spec.max_batch_size)
    if _needed(planned) <= free:
        return
    raise EngineError(
        f"max_batch_size {spec.max_batch_size} x max_seq_len {spec.max_seq_len} takes {shown_bytes(_needed(planned))} "
        f"(weights {shown_bytes(planned.weights)}, KV cache {shown_bytes(planned.kv_cache)}, activations "
        f"{shown_bytes(planned.activations)}), and {spec.device} has {shown_bytes(free)} free; "
        + _remedy(largest_batch(manifest, spec, free))
    )


def largest_batch(manifest: Manifest, spec: EngineSpec, free: int) -> int:
    """The most slots, up to the spec's, with which the engine fits ``free`` bytes; 0 if none does."""
    sizes = range(spec.max_batch_size, 0, -1)
    return next((size for size in sizes if _needed(_capacity(manifest, spec, size)) <= free), 0)


def _capacity(manifest: Manifest, spec: EngineSpec, batch: int) -> Capacity:
    tokens = min(spec.max_num_tokens, batch * spec.max_seq_len)
    return estimate(manifest.model_config, replace(manifest.build_config, max_batch_size=batch, max_num_tokens=tokens))


def _needed(capacity: Capacity) -> int:
    return capacity.weights + capacity.kv_cache + capacity.activations + RESERVE


def _remedy(batch: int) -> str:
    if batch:
        return f"max_batch_size up to {batch} fits"
    return "use a GPU with more memory, quantization='fp8', or build with a lower max_seq_len"


def _free_bytes(device: torch.device) -> int:
    """Of the GPU, with what torch keeps for itself and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
