"""Packed training weights -> a checkpoint directory in the family's published layout and tensor names.

``python -m examples.tiny_d3llm.export --family llada --weights DIR/llada.final.safetensors``
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from d3llm_trt.model.config import FAMILIES, Family, ModelConfig
from examples.tiny_d3llm.network import Weights, tiny_config
from examples.tiny_d3llm.tasks import TASKS, Task
from examples.tiny_d3llm.tokenizer import TOKENIZER_FILES, checkpoint_dir

# Packed name -> published name, outside of the layers and inside of one.
TOP_NAMES = {
    "llada": {
        "embedding": "model.transformer.wte",
        "final_norm": "model.transformer.ln_f",
        "lm_head": "model.transformer.ff_out",
    },
    "dream": {"embedding": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"},
}
LAYERS = {"llada": "model.transformer.blocks", "dream": "model.layers"}
LAYER_NAMES = {
    "llada": {
        "attention_norm": "attn_norm", "attention.q": "q_proj", "attention.k": "k_proj", "attention.v": "v_proj",
        "attention.output": "attn_out", "mlp_norm": "ff_norm", "mlp.gate": "ff_proj", "mlp.up": "up_proj",
        "mlp.down": "ff_out",
    },
    "dream": {
        "attention_norm": "input_layernorm", "attention.q": "self_attn.q_proj", "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj", "attention.output": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    },
}  # fmt: skip


def published_tensors(config: ModelConfig, weights: Weights) -> Weights:
    """bfloat16 tensors under their published names, fused ones split."""
    tensors = {}
    for name, weight in weights.items():
        for part, tensor in _split(config, name, weight).items():
            tensors[_published_name(config, part)] = tensor.to(torch.bfloat16).contiguous()
    return tensors


def _split(config: ModelConfig, name: str, weight: Tensor) -> Weights:
    head = config.head_dim
    if ".qkv." in name:
        sizes = (config.num_heads * head, config.num_kv_heads * head, config.num_kv_heads * head)
        parts = zip(("q", "k", "v"), weight.split(sizes), strict=True)
        return {name.replace("qkv", part): tensor for part, tensor in parts}
    if ".gate_up." in name:
        parts = zip(("gate", "up"), weight.chunk(2), strict=True)
        return {name.replace("gate_up", part): tensor for part, tensor in parts}
    return {name: weight}


def _published_name(config: ModelConfig, name: str) -> str:
    place, _, kind = name.rpartition(".")
    if not place.startswith("layers."):
        return f"{TOP_NAMES[config.family][place]}.{kind}"
    _, layer, inside = place.split(".", 2)
    return f"{LAYERS[config.family]}.{layer}.{LAYER_NAMES[config.family][inside]}.{kind}"


def llada_config(config: ModelConfig) -> dict[str, Any]:
    """The key set of the published LLaDA-8B config.json."""
    return {
        "activation_type": "silu",
        "alibi": False,
        "alibi_bias_max": 8.0,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": config.hidden_size,
        "embedding_dropout": 0.0,
        "embedding_size": config.vocab_size,
        "eos_token_id": config.eos_token_id,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": config.mask_token_id,
        "max_sequence_length": config.max_position_embeddings,
        "mlp_hidden_size": config.intermediate_size,
        "mlp_ratio": 4,
        "model_type": "llada",
        "multi_query_attention": None,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "n_layers": config.num_layers,
        "pad_token_id": config.pad_token_id,
        "precision": "amp_bf16",
        "residual_dropout": 0.0,
        "rms_norm_eps": config.rms_norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": config.rope_theta,
        "scale_logits": False,
        "transformers_version": "4.46.3",
        "use_cache": False,
        "vocab_size": config.vocab_size,
        "weight_tying": False,
    }


def dream_config(config: ModelConfig) -> dict[str, Any]:
    """The key set of the published Dream-7B config.json."""
    return {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "bos_token_id": config.eos_token_id,
        "eos_token_id": config.eos_token_id,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "mask_token_id": config.mask_token_id,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": config.num_layers,
        "model_type": "Dream",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": config.pad_token_id,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }


def generation_config(config: ModelConfig) -> dict[str, Any]:
    """As published: Dream's names no mask id, which is in config.json only."""
    version = {"_from_model_config": True, "transformers_version": "4.46.2"}
    if config.family == "llada":
        return {**version, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    end = config.eos_token_id
    return {
        **version,
        "alg": "origin",
        "alg_temp": None,
        "bos_token_id": end,
        "eos_token_id": end,
        "eps": 0.001,
        "mask_token_id": None,
        "output_history": False,
        "pad_token_id": end,
        "steps": 512,
        "temperature": 0.0,
        "top_k": None,
        "top_p": None,
    }


def export(task: Task, family: Family, weights: Weights, directory: Path) -> None:
    """Write a complete checkpoint directory, with the tokenizer that the model was trained with."""
    config, trained_with = tiny_config(task, family), checkpoint_dir(task, family)
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES[family]:
        if directory != trained_with:
            shutil.copyfile(trained_with / name, directory / name)
    settings = llada_config(config) if config.family == "llada" else dream_config(config)
    _write_json(directory / "config.json", settings)
    _write_json(directory / "generation_config.json", generation_config(config))
    save_file(published_tensors(config, weights), directory / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="tiny-d3llm")
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="FAMILY.final.safetensors")
    parser.add_argument("--output", type=Path, help="by default examples/checkpoints/TASK-FAMILY")
    args = parser.parse_args()
    task = TASKS[args.task]
    directory = args.output or checkpoint_dir(task, args.family)
    export(task, args.family, load_file(args.weights), directory)
    print(f"wrote {directory}")


if __name__ == "__main__":
    main()
