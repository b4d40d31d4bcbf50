"""What a file of packed weights holds: name, shape and dtype of every tensor, by quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass

from d3llm_trt.dtypes import DTYPES, FP8
from d3llm_trt.model.config import ModelConfig


@dataclass(frozen=True)
class TensorForm:
    """``dtype`` is torch's name without the prefix."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * DTYPES[self.dtype].num_bytes


def layer_linears(layer: int) -> tuple[str, str, str, str]:
    """Names of the linear layers of one transformer layer, in the order of the forward pass."""
    name = f"layers.{layer}"
    return f"{name}.attention.qkv", f"{name}.attention.output", f"{name}.mlp.gate_up", f"{name}.mlp.down"


def quantized_layers(config: ModelConfig) -> tuple[str, ...]:
    """Names of the linear layers that a quantization covers: all of the transformer layers, so not the LM head."""
    return tuple(name for layer in range(config.num_layers) for name in layer_linears(layer))


def packed_tensors(config: ModelConfig, dtype: str, quantization: str | None = None) -> dict[str, TensorForm]:
    """Every tensor in the order of the file: those of ``ModelConfig.tensor_shapes``, then the scales.

    With ``fp8`` the weight of each of :func:`quantized_layers` is FP8, and the layer has two float32 scalars,
    ``{layer}.weight_scale`` and ``{layer}.input_scale``: a value is its FP8 number times the scale.
    """
    forms = {name: TensorForm(shape, dtype) for name, shape in config.tensor_shapes().items()}
    if quantization is None:
        return forms
    layers = quantized_layers(config)
    forms |= {f"{name}.weight": TensorForm(forms[f"{name}.weight"].shape, FP8) for name in layers}
    scales = (f"{name}.{scale}" for name in layers for scale in ("weight_scale", "input_scale"))
    return forms | dict.fromkeys(scales, TensorForm((), "float32"))
