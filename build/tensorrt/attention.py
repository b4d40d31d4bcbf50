"""Attention lowered two ways: TensorRT's own on padded windows, or our plugin on packed ones.

Both take fused rows ``[..., (heads + 2 kv_heads) * d]`` to ``[..., heads * d]``: RoPE, the write of the window's K/V,
and attention to ``[0, kv_length)`` without a causal mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from d3llm_trt.build.tensorrt.lowering import Lowering
from d3llm_trt.config import EngineConfig
from d3llm_trt.dtypes import torch_dtype
from d3llm_trt.errors import BuildError, PluginError
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.torch_ops import rotary_tables
from d3llm_trt.plugins.tensorrt_plugin import NAME, load_plugin

WITHOUT_FUSED_KERNELS = (torch.float32,)


@dataclass(frozen=True)
class Inputs:
    """Network inputs that attention reads, with the shapes of ``network.py``."""

    positions: Any
    window: Any
    kv_lengths: Any
    slots: Any
    caches: list[tuple[Any, ...]]


class NativeAttention:
    """IAttention on padded windows ``[B, S, ...]`` over caches ``[B, kv_heads, positions, d]``.

    What is behind a slot's length is hidden by ``key_value_lengths``, or by a mask with ``attention_mask='explicit'``.
    """

    def __init__(self, lowering: Lowering, config: ModelConfig, settings: EngineConfig, inputs: Inputs) -> None:
        self._low = lowering
        self._config = config
        self._dtype = torch_dtype(settings.dtype)
        self._inputs = inputs
        cos, sin = rotary_tables(config, settings.max_seq_len)
        self._cos, self._sin = lowering.constant("rope.cos", cos), lowering.constant("rope.sin", sin)
        scale = torch.full((1, 1, 1, 1), config.head_dim**-0.5, dtype=self._dtype)
        self._scale = lowering.constant("attention.scale", scale)
        explicit = settings.plan.attention_mask == "explicit"
        self._mask = self._make_mask(settings.max_seq_len) if explicit else None
        self.updated: list[tuple[Any, Any]] = []

    def _make_mask(self, cache_positions: int) -> Any:
        """``[B, 1, 1, positions]``: True where a query may look."""
        low = self._low
        lengths = low.reshape("mask.lengths", self._inputs.kv_lengths, (0, 1))
        at = low.constant("mask.positions", torch.arange(cache_positions, dtype=torch.int32)[None])
        return low.reshape("mask", low.binary("mask.inside", at, "LESS", lengths), (0, 1, 1, cache_positions))

    def lower(self, name: str, layer: int, qkv: Any) -> Any:
        low, heads, kv_heads = self._low, self._config.num_heads, self._config.num_kv_heads
        split = (0, 0, heads + 2 * kv_heads, self._config.head_dim)
        rows = low.reshape(f"{name}.heads", qkv, split, after=(0, 2, 1, 3))
        q = self._rotated(f"{name}.q", low.slice(f"{name}.q", rows, 1, 0, heads))
        k = self._rotated(f"{name}.k", low.slice(f"{name}.k", rows, 1, heads, kv_heads))
        v = low.slice(f"{name}.v", rows, 1, heads + kv_heads, kv_heads)
        keys, values = self._cached(name, layer, k, v)
        # IAttention does not divide by the root of the head size.
        q = low.binary(f"{name}.q.scaled", q, "PROD", self._scale)
        attended = self._attend(name, q, keys, values)
        return low.reshape(f"{name}.rows", attended, (0, 0, heads * self._config.head_dim), before=(0, 2, 1, 3))

    def _rotated(self, name: str, x: Any) -> Any:
        low = self._low
        full = low.cast(f"{name}.to_float32", x, torch.float32)
        layer = low.network.add_rotary_embedding(full, self._cos, self._sin, False, self._config.head_dim)
        layer = low.layer(f"{name}.rope", layer)
        layer.set_input(3, self._inputs.positions)
        return low.cast(f"{name}.cast_back", layer.get_output(0), self._dtype)

    def _cached(self, name: str, layer: int, k: Any, v: Any) -> tuple[Any, Any]:
        low, mode = self._low, self._low.trt.KVCacheMode.LINEAR
        outputs = []
        for kind, cache, new in zip(("k", "v"), self._inputs.caches[layer], (k, v), strict=True):
            update = low.network.add_kv_cache_update(cache, new, self._inputs.window, mode)
            outputs.append(low.output(f"{name}.{kind}.cache", update))
        self.updated.append((outputs[0], outputs[1]))
        return outputs[0], outputs[1]

    def _attend(self, name: str, q: Any, keys: Any, values: Any) -> Any:
        low, trt = self._low, self._low.trt
        layer = low.network.add_attention_v2(
            q, keys, values, trt.AttentionNormalizationOp.SOFTMAX, trt.CausalMaskKind.NONE
        )
        if layer is None:
            raise BuildError(f"TensorRT refused the attention {name}; see its messages")
        layer.name = name
        layer.decomposable = self._dtype in WITHOUT_FUSED_KERNELS
        if self._mask is None:
            layer.key_value_lengths = self._inputs.kv_lengths
        else:
            layer.mask = self._mask
        return layer.get_output(0)


class PluginAttention:
    """Our plugin on packed windows ``[T, ...]`` over a cache ``[slots, 2, kv_heads, positions, d]`` per layer."""

    def __init__(self, lowering: Lowering, config: ModelConfig, inputs: Inputs, cache_positions: int) -> None:
        self._low = lowering
        self._config = config
        self._inputs = inputs
        try:
            self._creator = load_plugin(lowering.network.builder.get_plugin_registry())
        except PluginError as error:
            raise BuildError(f"attention is 'plugin', which needs its library: {error}") from error
        cos, sin = rotary_tables(config, cache_positions)
        self._tables = (lowering.constant("rope.cos", cos), lowering.constant("rope.sin", sin))
        self.updated: list[tuple[Any]] = []

    def lower(self, name: str, layer: int, qkv: Any) -> Any:
        inputs = self._inputs
        tensors = [qkv, *inputs.caches[layer], inputs.positions, inputs.window, inputs.kv_lengths, inputs.slots]
        plugin = self._creator.create_plugin(name, self._fields(), self._low.trt.TensorRTPhase.BUILD)
        if plugin is None:
            raise BuildError(f"the plugin {NAME} refused the fields of {name}; see its messages")
        made = self._low.layer(name, self._low.network.add_plugin_v3([*tensors, *self._tables], [], plugin))
        self.updated.append((made.get_output(1),))
        return made.get_output(0)

    def _fields(self) -> Any:
        trt, kind = self._low.trt, self._low.trt.PluginFieldType.INT32
        values = {name: getattr(self._config, name) for name in ("num_heads", "num_kv_heads", "head_dim")}
        items = [trt.PluginField(name, np.array([value], dtype=np.int32), kind) for name, value in values.items()]
        return trt.PluginFieldCollection(items)
