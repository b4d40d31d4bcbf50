"""The whole network of a model as a TensorRT network: inputs and their profiles, the forward pass, outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from d3llm_trt.build.tensorrt.attention import Inputs, NativeAttention, PluginAttention
from d3llm_trt.build.tensorrt.lowering import Lowering
from d3llm_trt.build.tensorrt.ops import TensorRTOps
from d3llm_trt.config import PlanConfig
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.transformer import forward

Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]  # smallest, usual, largest
Span = tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """What a plan is built for.

    ``cache_positions`` is the capacity of a slot's cache; ``batches`` and ``buckets`` (tokens per window if padded,
    per pass if packed) each have a profile.
    """

    slots: int
    cache_positions: int
    batches: tuple[int, ...]
    buckets: tuple[int, ...]


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


def padded_bindings(config: ModelConfig, dtype: torch.dtype, sizes: Sizes) -> list[Binding]:
    """Inputs of native attention: windows ``[B, S]``, a K and a V cache per layer for slots one after the other."""
    points = [(batches, tokens) for batches in _spans(sizes.batches) for tokens in _spans(sizes.buckets)]
    cache = (config.num_kv_heads, sizes.cache_positions, config.head_dim)

    def binding(name: str, kind: torch.dtype, shape: Shape, shapes: Callable[[Span, Span], Profile]) -> Binding:
        return Binding(name, kind, shape, tuple(shapes(*point) for point in points))

    def rows(batches: Span, tokens: Span) -> Profile:
        return (batches[0], tokens[0]), (batches[1], tokens[1]), (batches[1], tokens[1])

    def wanted(batches: Span, tokens: Span) -> Profile:
        most = batches[1] * tokens[1]
        return (1,), (most,), (most,)

    def per_slot(batches: Span, tokens: Span) -> Profile:
        return (batches[0],), (batches[1],), (batches[1],)

    def per_cache(batches: Span, tokens: Span) -> Profile:
        return (batches[0], *cache), (batches[1], *cache), (batches[1], *cache)

    caches = [
        binding(f"{kind}_cache.{layer}", dtype, (-1, *cache), per_cache)
        for layer in range(config.num_layers)
        for kind in "kv"
    ]
    return [
        binding("token_ids", torch.int64, (-1, -1), rows),
        binding("positions", torch.int64, (-1, -1), rows),
        binding("window_starts", torch.int32, (-1,), per_slot),
        binding("kv_lengths", torch.int32, (-1,), per_slot),
        binding("logit_rows", torch.int64, (-1,), wanted),
        *caches,
    ]


def packed_bindings(config: ModelConfig, dtype: torch.dtype, sizes: Sizes) -> list[Binding]:
    """Inputs of the plugin: the engine contract's own, and one cache per layer for all slots."""
    spans, batch = _spans(sizes.buckets), max(sizes.batches)
    cache = (sizes.slots, 2, config.num_kv_heads, sizes.cache_positions, config.head_dim)
    rows = tuple(((low,), (high,), (high,)) for low, high in spans)
    wanted = tuple(((1,), (high,), (high,)) for _, high in spans)
    per_slot = (((1,), (batch,), (batch,)),) * len(spans)
    edges = (((2,), (batch + 1,), (batch + 1,)),) * len(spans)
    fixed = ((cache, cache, cache),) * len(spans)
    return [
        Binding("token_ids", torch.int64, (-1,), rows),
        Binding("positions", torch.int64, (-1,), rows),
        Binding("cu_window", torch.int64, (-1,), edges),
        Binding("kv_lengths", torch.int64, (-1,), per_slot),
        Binding("slots", torch.int64, (-1,), per_slot),
        Binding("logit_rows", torch.int64, (-1,), wanted),
        *(Binding(f"kv_cache.{layer}", dtype, cache, fixed) for layer in range(config.num_layers)),
    ]


def _spans(buckets: Sequence[int]) -> list[Span]:
    """Smallest and largest size of every bucket: from one above the bucket before."""
    ordered = sorted(buckets)
    return list(zip([1, *(bucket + 1 for bucket in ordered[:-1])], ordered, strict=True))


def build_network(
    trt: Any,
    builder: Any,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    sizes: Sizes,
    options: PlanConfig,
) -> BuiltNetwork:
    """Lower the forward pass of ``config``. Raises BuildError naming the layer that TensorRT refuses."""
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    low = Lowering(trt, builder.create_network(flags))
    make = padded_bindings if options.attention == "native" else packed_bindings
    bindings = make(config, dtype, sizes)
    given = {
        binding.name: low.network.add_input(binding.name, low.dtype(binding.dtype), binding.shape)
        for binding in bindings
    }
    attention, outputs = _attention(low, config, dtype, sizes, options, given)
    ops = TensorRTOps(low, config, weights, dtype, attention)
    logits = forward(config, ops, given["token_ids"], given["logit_rows"])
    _mark(low, logits, "logits")
    for layer, updated in enumerate(attention.updated):
        for name, tensor in zip(outputs, updated, strict=True):
            _mark(low, tensor, f"{name}.{layer}.updated")
    return BuiltNetwork(low, tuple(bindings))


def _attention(
    low: Lowering,
    config: ModelConfig,
    dtype: torch.dtype,
    sizes: Sizes,
    options: PlanConfig,
    given: dict[str, Any],
) -> tuple[NativeAttention | PluginAttention, tuple[str, ...]]:
    """The chosen attention, and the stems of its cache inputs."""
    native = options.attention == "native"
    stems = ("k_cache", "v_cache") if native else ("kv_cache",)
    caches = [tuple(given[f"{stem}.{layer}"] for stem in stems) for layer in range(config.num_layers)]
    window = given["window_starts" if native else "cu_window"]
    inputs = Inputs(given["positions"], window, given["kv_lengths"], given.get("slots"), caches)
    if native:
        explicit = options.attention_mask == "explicit"
        return NativeAttention(low, config, dtype, inputs, sizes.cache_positions, explicit), stems
    return PluginAttention(low, config, inputs, sizes.cache_positions), stems


def _mark(low: Lowering, tensor: Any, name: str) -> None:
    tensor.name = name
    low.network.mark_output(tensor)
