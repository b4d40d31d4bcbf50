"""The dtypes of weights in one table: names in torch and in safetensors, sizes, and codes in our kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dtype:
    """One row: torch's name without the prefix, bytes of a value, the name in safetensors headers, ``d3llm_dtype``."""

    name: str
    num_bytes: int
    safetensors: str
    code: int


FP8 = "float8_e4m3fn"
HALF = ("bfloat16", "float16")
COMPUTE = (*HALF, "float32")  # what activations and the weights of checkpoints may be
_ROWS = (
    Dtype("float32", 4, "F32", 0),
    Dtype("float16", 2, "F16", 1),
    Dtype("bfloat16", 2, "BF16", 2),
    Dtype(FP8, 1, "F8_E4M3", 3),
)
DTYPES = {row.name: row for row in _ROWS}
CHECKPOINT_DTYPES = {DTYPES[name].safetensors: name for name in COMPUTE}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of ``dtype`` in the table: torch's without the prefix."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """Inverse of :func:`dtype_name`."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
