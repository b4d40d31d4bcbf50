"""Small random checkpoints of both families, in the layout of the published ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ARCHITECTURES = {"llada": "LLaDAModelLM", "dream": "DreamModel"}
INDEX_FILE = "model.safetensors.index.json"


def make_checkpoint(
    path: Path,
    family: str,
    *,
    seed: int = 0,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int | None = None,
    intermediate: int = 128,
    vocab: int = 96,
    dtype: torch.dtype = torch.float32,
    shards: int = 1,
    max_positions: int = 256,
    peaky: bool = True,
) -> Path:
    """Write a checkpoint into ``path`` and return it. Mask id is ``vocab - 4``, EOS and pad are ``vocab - 14``.

    With ``peaky`` the entropies of the softmax are spread over 0.1 to 2.0 nats; without it they are near uniform.
    """
    path.mkdir(parents=True, exist_ok=True)
    kv_heads = heads if kv_heads is None else kv_heads
    sizes = (hidden, layers, heads, kv_heads, intermediate, vocab)
    config = {"llada": llada_config, "dream": dream_config}[family](*sizes, max_positions)
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    write_config(path, config)
    tensors = random_tensors(family, *sizes, seed=seed, peaky=peaky)
    write_tensors(path, {name: tensor.to(dtype) for name, tensor in tensors.items()}, shards)
    return path


def llada_config(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int, max_positions: int
) -> dict[str, Any]:
    """The keys of LLaDA's published ``config.json`` that mean something, and some that do not."""
    off = (
        "alibi", "attention_layer_norm", "bias_for_layer_norm", "flash_attention", "include_bias", "include_qkv_bias",
        "input_emb_norm", "scale_logits", "use_cache", "weight_tying",
    )  # fmt: skip
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": hidden,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "mlp_hidden_size": intermediate,
        "mlp_ratio": 4,
        "vocab_size": vocab,
        "embedding_size": vocab,
        "max_sequence_length": max_positions,
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "multi_query_attention": None,
        "precision": "amp_bf16",
        "mask_token_id": vocab - 4,
        "eos_token_id": vocab - 14,
        "pad_token_id": vocab - 14,
        **dict.fromkeys(off, False),
    }


def dream_config(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int, max_positions: int
) -> dict[str, Any]:
    """The keys of Dream's published ``config.json``."""
    return {
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "attention_dropout": 0.0,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "use_mrope": False,
        "use_cache": False,
        "mask_token_id": vocab - 4,
        "bos_token_id": vocab - 14,
        "eos_token_id": vocab - 14,
        "pad_token_id": vocab - 14,
    }


def random_tensors(
    family: str,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocab: int,
    *,
    seed: int = 0,
    peaky: bool = True,
) -> dict[str, torch.Tensor]:
    """Float32 tensors under their published names."""
    shapes = tensor_shapes(family, hidden, layers, heads, kv_heads, intermediate, vocab)
    # Logits of this spread are where a Gibbs measure over random energies freezes: entropies of order one.
    spread = 1.7 * math.sqrt(2 * math.log(vocab)) if peaky else 0.1
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name in ("lm_head.weight", "model.transformer.ff_out.weight"):
            tensors[name] = noise * spread / math.sqrt(hidden)
        elif name.endswith(".bias"):
            tensors[name] = noise * 0.5
        elif len(shape) == 1:
            tensors[name] = 1 + noise * 0.05
        elif name.endswith(("embed_tokens.weight", "wte.weight")):
            tensors[name] = noise * 0.5
        else:
            tensors[name] = noise * 1.5 / math.sqrt(shape[1])
    return tensors


def tensor_shapes(
    family: str, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int
) -> dict[str, tuple[int, ...]]:
    """Published names and shapes of one family."""
    kv = hidden // heads * kv_heads
    llada = family == "llada"
    block = {
        "attn_norm.weight" if llada else "input_layernorm.weight": (hidden,),
        "q_proj.weight" if llada else "self_attn.q_proj.weight": (hidden, hidden),
        "k_proj.weight" if llada else "self_attn.k_proj.weight": (kv, hidden),
        "v_proj.weight" if llada else "self_attn.v_proj.weight": (kv, hidden),
        "attn_out.weight" if llada else "self_attn.o_proj.weight": (hidden, hidden),
        "ff_norm.weight" if llada else "post_attention_layernorm.weight": (hidden,),
        "ff_proj.weight" if llada else "mlp.gate_proj.weight": (intermediate, hidden),
        "up_proj.weight" if llada else "mlp.up_proj.weight": (intermediate, hidden),
        "ff_out.weight" if llada else "mlp.down_proj.weight": (hidden, intermediate),
    }
    if not llada:
        rows = {"q": hidden, "k": kv, "v": kv}
        block |= {f"self_attn.{part}_proj.bias": (size,) for part, size in rows.items()}
    prefix = "model.transformer.blocks" if llada else "model.layers"
    shapes: dict[str, tuple[int, ...]] = {
        "model.transformer.wte.weight" if llada else "model.embed_tokens.weight": (vocab, hidden)
    }
    for layer in range(layers):
        shapes |= {f"{prefix}.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.transformer.ln_f.weight" if llada else "model.norm.weight"] = (hidden,)
    shapes["model.transformer.ff_out.weight" if llada else "lm_head.weight"] = (vocab, hidden)
    return shapes


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    """``model.safetensors``, or ``shards`` files of it and their index."""
    if shards == 1:
        save_file(tensors, str(path / "model.safetensors"), metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        save_file({name: tensors[name] for name in part}, str(path / file_name), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / INDEX_FILE).write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_config(path: Path, config: dict[str, Any]) -> None:
    """``config.json`` with just these keys."""
    (path / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def edit_config(path: Path, **changes: Any) -> None:
    """Set keys of ``config.json``; a key set to ``...`` is removed."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8")) | changes
    write_config(path, {key: value for key, value in config.items() if value is not ...})
