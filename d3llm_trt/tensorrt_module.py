"""The one place that imports TensorRT: the full one, or TensorRT for RTX, by the name of the backend."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d3llm_trt.dtypes import FP8, dtype_name
from d3llm_trt.errors import EngineError

if TYPE_CHECKING:
    import torch

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
PACKAGES = {"tensorrt": "tensorrt-cu13 (10.15.1 or newer)", "tensorrt-rtx": "tensorrt-rtx-cu13"}


def load_tensorrt(backend: str) -> Any:
    """The Python module of ``backend``. Raises EngineError with what to install."""
    try:
        return import_module(MODULES[backend])
    except ImportError as error:
        raise EngineError(f"backend {backend!r} needs {PACKAGES[backend]}: {error}; install it with pip") from error


def tensorrt_dtype(trt: Any, dtype: torch.dtype) -> Any:
    """What the module calls a dtype."""
    name = dtype_name(dtype)
    return getattr(trt, "fp8" if name == FP8 else name)
