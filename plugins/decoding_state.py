"""The decoding state of all slots as the commit and gather kernels take it: names, dtypes and shapes of its fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d3llm_trt.plugins.c_structs import Progress, Settings
from d3llm_trt.plugins.tensors import address

SETTINGS = tuple(name for name, _ in Settings._fields_)
PROGRESS = tuple(name for name, _ in Progress._fields_)

_BY_POSITION = ("canvas", "commit_steps", "candidates")
_BY_BLOCK = ("active", "block_cached", "done_pass")
_DTYPES = {
    **dict.fromkeys(("by_quota", "cached", "candidates", "active", "block_cached", "done", "failed"), torch.bool),
    **dict.fromkeys(("threshold", "entropy_eps", "temperature"), torch.float32),
    **dict.fromkeys(("block_add_threshold", "decoded_token_threshold"), torch.float64),
}  # int64 for the rest


def state_size(progress: Sequence[Tensor]) -> tuple[int, int]:
    """``(num_slots, max_seq_len)`` of the fields of progress."""
    num_slots, max_seq_len = progress[PROGRESS.index("canvas")].shape
    return num_slots, max_seq_len


def state_structs(
    launcher: str, settings: Sequence[Tensor], progress: Sequence[Tensor], device: torch.device
) -> tuple[Settings, Progress]:
    """The C structs over these fields, which must outlive their use. Raises PluginError where one does not fit."""
    num_slots, max_seq_len = state_size(progress)
    shapes = {
        **dict.fromkeys(_BY_POSITION, (num_slots, max_seq_len)),
        **dict.fromkeys(_BY_BLOCK, (num_slots, max_seq_len + 1)),
    }

    def pointer(name: str, tensor: Tensor) -> int:
        dtype = _DTYPES.get(name, torch.int64)
        return address(f"{launcher}: {name}", tensor, dtype, shapes.get(name, (num_slots,)), device)

    return Settings(*map(pointer, SETTINGS, settings)), Progress(*map(pointer, PROGRESS, progress))
