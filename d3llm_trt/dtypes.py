"""The dtypes of weights in one table: names in torch and in safetensors, sizes, and codes in our kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Dtype(NamedTuple):
    """Bytes of one value, the name in the headers of safetensors files, and the code in ``d3llm_dtype``."""

    num_bytes: int
    safetensors: str
    code: int


FP8 = "float8_e4m3fn"
HALF = ("bfloat16", "float16")
COMPUTE = (*HALF, "float32")  # what activations and the weights of checkpoints may be
# By torch's names without the prefix.
DTYPES = {
    "float32": Dtype(4, "F32", 0),
    "float16": Dtype(2, "F16", 1),
    "bfloat16": Dtype(2, "BF16", 2),
    FP8: Dtype(1, "F8_E4M3", 3),
}
CHECKPOINT_DTYPES = {DTYPES[name].safetensors: name for name in COMPUTE}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of ``dtype`` in the table: torch's without the prefix."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that :func:`dtype_name` names."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype
