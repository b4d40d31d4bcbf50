"""The whole network of a model as a TensorRT network: inputs and their profiles, the forward pass, outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d3llm_trt.build.tensorrt.attention import Inputs, NativeAttention, PluginAttention
from d3llm_trt.build.tensorrt.lowering import Lowering
from d3llm_trt.build.tensorrt.ops import TensorRTOps
from d3llm_trt.config import EngineConfig
from d3llm_trt.dtypes import torch_dtype
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.transformer import forward

Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]  # smallest, usual, largest
Ends = tuple[Shape, Shape]  # smallest, largest
Span = tuple[int, int]


@dataclass(frozen=True)
class Binding:
    """An input, and its smallest, usual and largest shape in every profile."""

    name: str
    dtype: torch.dtype
    shape: Shape
    profiles: tuple[Profile, ...]


@dataclass(frozen=True)
class BuiltNetwork:
    """A network ready to be compiled; ``lowering`` keeps its weights alive."""

    lowering: Lowering
    bindings: tuple[Binding, ...]


def padded_bindings(config: ModelConfig, settings: EngineConfig) -> list[Binding]:
    """Inputs of native attention: windows ``[B, S]``, a K and a V cache per layer for slots one after the other.

    Every number of tokens of a window in ``token_buckets`` has a profile for one slot, and one for several.
    """
    batches, buckets = _spans({1, settings.max_batch_size}), _spans(settings.plan.token_buckets)
    points = [(slots, tokens) for slots in batches for tokens in buckets]
    cache, dtype = (config.num_kv_heads, settings.max_seq_len, config.head_dim), torch_dtype(settings.dtype)
    rows = [((few, short), (many, long)) for (few, many), (short, long) in points]
    scored = [((1,), (many * long,)) for (_, many), (_, long) in points]
    per_slot = [((few,), (many,)) for (few, many), _ in points]
    per_cache = [((few, *cache), (many, *cache)) for (few, many), _ in points]
    names = [f"{kind}_cache.{layer}" for layer in range(config.num_layers) for kind in "kv"]
    return [
        _binding("token_ids", torch.int64, (-1, -1), rows),
        _binding("positions", torch.int64, (-1, -1), rows),
        _binding("window_starts", torch.int32, (-1,), per_slot),
        _binding("kv_lengths", torch.int32, (-1,), per_slot),
        _binding("logit_rows", torch.int64, (-1,), scored),
        *(_binding(name, dtype, (-1, *cache), per_cache) for name in names),
    ]


def packed_bindings(config: ModelConfig, settings: EngineConfig) -> list[Binding]:
    """Inputs of the plugin: the engine contract's own, and one cache per layer for all slots.

    Every number of tokens of a pass in ``token_buckets`` has a profile.
    """
    spans, batch = _spans(settings.plan.token_buckets), settings.max_batch_size
    cache, dtype = (batch, 2, config.num_kv_heads, settings.max_seq_len, config.head_dim), torch_dtype(settings.dtype)
    rows = [((short,), (long,)) for short, long in spans]
    scored = [((1,), (long,)) for _, long in spans]
    per_slot, edges = [((1,), (batch,))] * len(spans), [((2,), (batch + 1,))] * len(spans)
    fixed = [(cache, cache)] * len(spans)
    return [
        _binding("token_ids", torch.int64, (-1,), rows),
        _binding("positions", torch.int64, (-1,), rows),
        _binding("cu_window", torch.int64, (-1,), edges),
        _binding("kv_lengths", torch.int64, (-1,), per_slot),
        _binding("slots", torch.int64, (-1,), per_slot),
        _binding("logit_rows", torch.int64, (-1,), scored),
        *(_binding(f"kv_cache.{layer}", dtype, cache, fixed) for layer in range(config.num_layers)),
    ]


def _binding(name: str, dtype: torch.dtype, shape: Shape, ends: Iterable[Ends]) -> Binding:
    """An input whose usual shape is the largest one of each profile."""
    return Binding(name, dtype, shape, tuple((smallest, largest, largest) for smallest, largest in ends))


def _spans(buckets: Iterable[int]) -> list[Span]:
    """Smallest and largest size of every bucket: from one above the bucket before."""
    ordered = sorted(buckets)
    return list(zip([1, *(bucket + 1 for bucket in ordered[:-1])], ordered, strict=True))


def build_network(
    trt: Any, builder: Any, config: ModelConfig, weights: Mapping[str, Tensor], settings: EngineConfig
) -> BuiltNetwork:
    """Lower the forward pass over packed weights. Raises BuildError naming the layer that TensorRT refuses."""
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    low = Lowering(trt, builder.create_network(flags))
    make = padded_bindings if settings.plan.attention == "native" else packed_bindings
    bindings = make(config, settings)
    inputs = {item.name: low.network.add_input(item.name, low.dtype(item.dtype), item.shape) for item in bindings}
    attention, stems = _attention(low, config, settings, inputs)
    ops = TensorRTOps(low, config, weights, torch_dtype(settings.dtype), attention)
    _mark(low, forward(config, ops, inputs["token_ids"], inputs["logit_rows"]), "logits")
    for layer, updated in enumerate(attention.updated):
        for stem, tensor in zip(stems, updated, strict=True):
            _mark(low, tensor, f"{stem}.{layer}.updated")
    return BuiltNetwork(low, tuple(bindings))


def _attention(
    low: Lowering, config: ModelConfig, settings: EngineConfig, tensors: dict[str, Any]
) -> tuple[NativeAttention | PluginAttention, tuple[str, ...]]:
    """The chosen attention, and the stems of its cache inputs."""
    native = settings.plan.attention == "native"
    stems = ("k_cache", "v_cache") if native else ("kv_cache",)
    caches = [tuple(tensors[f"{stem}.{layer}"] for stem in stems) for layer in range(config.num_layers)]
    window = tensors["window_starts" if native else "cu_window"]
    inputs = Inputs(tensors["positions"], window, tensors["kv_lengths"], tensors.get("slots"), caches)
    if native:
        return NativeAttention(low, config, settings, inputs), stems
    return PluginAttention(low, config, inputs, settings.max_seq_len), stems


def _mark(low: Lowering, tensor: Any, name: str) -> None:
    tensor.name = name
    low.network.mark_output(tensor)
