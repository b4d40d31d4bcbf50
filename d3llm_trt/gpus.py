"""GPUs by compute capability: the oldest that is supported, the oldest for a precision, those of TensorRT for RTX."""

from __future__ import annotations

import re

from d3llm_trt.settings import require

DEVICES = "cpu, cuda, cuda:0, ..."
AMPERE = OLDEST_GPU = (8, 0)
# What a GPU must be at least for a precision, as TensorRT for RTX compiles it.
OLDEST_FOR = {"fp8": (8, 9), "bfloat16": (8, 0), "float32": (8, 0), "float16": (7, 5)}
# GPUs that TensorRT for RTX builds plans for, and those that it builds them for by default.
RTX_SUPPORTED = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
RTX_DEFAULT = ("8.6", "8.9", "12.0")


def check_device_name(name: object) -> None:
    """Raise ConfigError unless ``name`` is written like a device; whether the machine has it is another matter."""
    require(isinstance(name, str) and bool(re.fullmatch(r"cpu(:0)?|cuda(:[0-9]{1,2})?", name)), "device", name, DEVICES)


def capability_name(capability: tuple[int, int]) -> str:
    """``(8, 9)`` as "8.9"."""
    return ".".join(map(str, capability))


def rtx_capabilities(precision: str) -> list[str]:
    """GPUs that TensorRT for RTX builds plans of ``precision`` for: a quantization or a dtype."""
    oldest = OLDEST_FOR[precision]
    return [name for name in RTX_SUPPORTED if tuple(map(int, name.split("."))) >= oldest]
