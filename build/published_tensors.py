"""Which tensors the published checkpoints of a family have, by their own names; those names end here."""

from __future__ import annotations

import re

from d3llm_trt.model.config import Family, ModelConfig

# Packed name -> published names whose rows it holds, in this order. Layers are under their prefix.
_LAYER_PREFIX: dict[Family, str] = {"llada": "model.transformer.blocks", "dream": "model.layers"}
_TENSORS: dict[Family, dict[str, tuple[str, ...]]] = {
    "llada": {
        "embedding.weight": ("model.transformer.wte.weight",),
        "attention_norm.weight": ("attn_norm.weight",),
        "attention.qkv.weight": ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
        "attention.output.weight": ("attn_out.weight",),
        "mlp_norm.weight": ("ff_norm.weight",),
        "mlp.gate_up.weight": ("ff_proj.weight", "up_proj.weight"),
        "mlp.down.weight": ("ff_out.weight",),
        "final_norm.weight": ("model.transformer.ln_f.weight",),
        "lm_head.weight": ("model.transformer.ff_out.weight",),
    },
    "dream": {
        "embedding.weight": ("model.embed_tokens.weight",),
        "attention_norm.weight": ("input_layernorm.weight",),
        "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        "attention.qkv.bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
        "attention.output.weight": ("self_attn.o_proj.weight",),
        "mlp_norm.weight": ("post_attention_layernorm.weight",),
        "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "mlp.down.weight": ("mlp.down_proj.weight",),
        "final_norm.weight": ("model.norm.weight",),
        "lm_head.weight": ("lm_head.weight",),
    },
}
# Tables of the rotary embedding that older versions of transformers saved; they follow from the configuration.
_BUFFER = re.compile(r"(?:.*\.)?(?:original_)?inv_freq|.*\brotary_emb\.(?:cos|sin)_cached")


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name is no weight, so that it is ignored."""
    return _BUFFER.fullmatch(name) is not None


def packing(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Packed name -> full published names, in packed order."""
    tensors, prefix = _TENSORS[config.family], _LAYER_PREFIX[config.family]
    names: dict[str, tuple[str, ...]] = {}
    for packed in config.tensor_shapes():
        if packed in tensors:
            names[packed] = tensors[packed]
            continue
        _, layer, name = packed.split(".", 2)
        names[packed] = tuple(f"{prefix}.{layer}.{part}" for part in tensors[name])
    return names


def published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every published tensor."""
    kv_rows = config.num_kv_heads * config.head_dim
    fused = {3: (config.num_heads * config.head_dim, kv_rows, kv_rows), 2: (config.intermediate_size,) * 2}
    shapes: dict[str, tuple[int, ...]] = {}
    packed_shapes = config.tensor_shapes()
    for packed, parts in packing(config).items():
        shape = packed_shapes[packed]
        rows = fused.get(len(parts), (shape[0],))
        shapes |= {name: (count, *shape[1:]) for name, count in zip(parts, rows, strict=True)}
    return shapes
