"""The KV cache: how it is laid out, how large it is, and its allocation."""

from __future__ import annotations

import torch
from torch import Tensor

from d3llm_trt.errors import EngineError
from d3llm_trt.model.config import ModelConfig


def kv_cache_shape(config: ModelConfig, slots: int, max_seq_len: int) -> tuple[int, ...]:
    """``[layers, slots, 2, kv_heads, max_seq_len, head_dim]``; index 0 of the third is K after RoPE, 1 is V."""
    return (config.num_layers, slots, 2, config.num_kv_heads, max_seq_len, config.head_dim)


def allocate_kv_cache(
    config: ModelConfig, slots: int, max_seq_len: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """An uninitialised KV cache: a window only reads rows that itself or an earlier one of its slot wrote.

    Raises EngineError naming the size if there is not enough memory.
    """
    shape = kv_cache_shape(config, slots, max_seq_len)
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # also torch.OutOfMemoryError
        gib = torch.Size(shape).numel() * dtype.itemsize / (1 << 30)
        raise EngineError(
            f"the KV cache of {slots} slots x {max_seq_len} positions takes {gib:.2f} GiB, which {device} does not "
            "have; lower max_batch_size, or build with a lower max_seq_len"
        ) from error
