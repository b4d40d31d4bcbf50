"""Tensors as a launcher takes them: addresses that were checked, dtype codes, the current stream."""

from __future__ import annotations

import torch
from torch import Tensor

from d3llm_trt.dtypes import DTYPES, dtype_name
from d3llm_trt.errors import PluginError
from d3llm_trt.plugins import library
from d3llm_trt.plugins.c_structs import Params


def address(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> int:
    """The address of a tensor that a kernel reads or writes.

    Raises PluginError on another dtype, shape, device or layout than the kernel takes.
    """
    if tensor.dtype == dtype and tensor.shape == shape and tensor.device == device and tensor.is_contiguous():
        return tensor.data_ptr()
    layout = "contiguous" if tensor.is_contiguous() else "strided"
    raise PluginError(
        f"{name} is {layout} {tensor.dtype} {[*tensor.shape]} on {tensor.device}; allowed: contiguous {dtype} "
        f"{[*shape]} on {device}"
    )


def dtype_code(dtype: torch.dtype) -> int:
    """The code of ``dtype`` in ``d3llm_dtype``."""
    return DTYPES[dtype_name(dtype)].code


def launch(name: str, params: Params, device: torch.device) -> None:
    """Enqueue a launcher on the current stream of ``device``. Raises PluginError."""
    with torch.cuda.device(device):
        library.load().launch(name, params, torch.cuda.current_stream().cuda_stream)
