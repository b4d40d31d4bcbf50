"""Checkpoints of both families: what is read from them, how weights are packed, what is refused in which words."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3llm_trt.build import checkpoint as checkpoint_module
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.errors import CheckpointError
from tests.support.checkpoints import INDEX_FILE, edit_config, make_checkpoint, write_tensors

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("llada", "dream")
SMALL = {"hidden": 16, "layers": 2, "heads": 4, "intermediate": 24, "vocab": 32}


def small(path: Path, family: str, **options: Any) -> Path:
    kv_heads = 2 if family == "dream" else None
    return make_checkpoint(path, family, **{**SMALL, "kv_heads": kv_heads, **options})


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        list(open_checkpoint(path).packed_tensors())
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_checkpoints_are_read_from_their_config(family: str) -> None:
    opened = open_checkpoint(GOLDEN / f"{family}_tiny")
    config = opened.config
    assert (config.family, opened.dtype) == (family, "float32")
    assert (config.hidden_size, config.intermediate_size, config.num_layers, config.head_dim) == (128, 256, 3, 32)
    expected = {
        "llada": (4, 1e-5, 500000.0, 512, 380, 370, 370),
        "dream": (2, 1e-6, 1000000.0, 512, 381, 371, 371),
    }[family]
    given = (
        config.num_kv_heads, config.rms_norm_eps, config.rope_theta, config.max_position_embeddings,
        config.mask_token_id, config.eos_token_id, config.pad_token_id,
    )  # fmt: skip
    assert given == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_are_the_published_ones_fused(
    tmp_path: Path, family: str, shards: int, dtype: torch.dtype
) -> None:
    opened = open_checkpoint(small(tmp_path, family, shards=shards, dtype=dtype))
    source = {name: tensor for file in tmp_path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    packed = dict(opened.packed_tensors())
    assert {name: tuple(t.shape) for name, t in packed.items()} == opened.config.tensor_shapes()
    assert list(packed) == list(opened.config.tensor_shapes())
    assert {t.dtype for t in packed.values()} == {dtype}
    names = {
        "llada": ("model.transformer.blocks.1.", "q_proj", "k_proj", "v_proj", "ff_proj", "up_proj", "ff_out"),
        "dream": (
            "model.layers.1.", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj",
        ),
    }  # fmt: skip
    prefix, q, k, v, gate, up, down = names[family]
    qkv = torch.cat([source[f"{prefix}{part}.weight"] for part in (q, k, v)])
    assert torch.equal(packed["layers.1.attention.qkv.weight"], qkv)
    gate_up = torch.cat([source[f"{prefix}{part}.weight"] for part in (gate, up)])
    assert torch.equal(packed["layers.1.mlp.gate_up.weight"], gate_up)
    assert torch.equal(packed["layers.1.mlp.down.weight"], source[f"{prefix}{down}.weight"])
    head = "model.transformer.ff_out.weight" if family == "llada" else "lm_head.weight"
    assert torch.equal(packed["lm_head.weight"], source[head])
    if family == "dream":
        bias = torch.cat([source[f"{prefix}{part}.bias"] for part in (q, k, v)])
        assert torch.equal(packed["layers.1.attention.qkv.bias"], bias)


def test_writing_to_a_tensor_changes_neither_the_file_nor_the_process(tmp_path: Path) -> None:
    opened = open_checkpoint(small(tmp_path, "dream"))
    before = (tmp_path / "model.safetensors").read_bytes()
    opened.tensor("model.norm.weight").zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_data_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    small(tmp_path, "llada")
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    before = dict(open_checkpoint(tmp_path).packed_tensors())
    path.unlink()
    path.write_bytes(struct.pack("<Q", length + 1) + data[8 : 8 + length] + b" " + data[8 + length :])
    after = dict(open_checkpoint(tmp_path).packed_tensors())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_opening_reads_headers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path, "dream", shards=2)

    def mapped(file: object) -> None:
        raise AssertionError("weights were mapped")

    monkeypatch.setattr(checkpoint_module.WeightsFile, "_map", mapped)
    open_checkpoint(tmp_path)


# Nulls and unknown keys


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"n_kv_heads": None}, {"heads": 4, "kv_heads": 4}),
        ({"n_kv_heads": None, "multi_query_attention": True}, {"heads": 4, "kv_heads": 1}),
        ({"mlp_hidden_size": None, "mlp_ratio": 3}, {"intermediate": 48}),
        ({"embedding_size": None}, {}),
        ({"vocab_size": 30}, {}),
        ({"tie_word_embeddings": True}, {}),
        ({"something_new": {"nested": [1, 2.5, None]}}, {}),
        ({"model_type": "renamed"}, {}),
    ],
)
def test_llada_settings_that_mean_the_same(tmp_path: Path, changes: dict[str, Any], size: dict[str, int]) -> None:
    small(tmp_path, "llada", **size)
    expected = open_checkpoint(tmp_path).config
    edit_config(tmp_path, **changes)
    assert open_checkpoint(tmp_path).config == expected


# Refusals in config.json

SIZES = {
    "llada": (
        "d_model", "n_heads", "n_layers", "n_kv_heads", "mlp_hidden_size", "vocab_size", "embedding_size",
        "max_sequence_length", "rms_norm_eps", "rope_theta", "mask_token_id", "eos_token_id", "pad_token_id",
    ),
    "dream": (
        "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "intermediate_size",
        "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "mask_token_id", "eos_token_id",
        "pad_token_id",
    ),
}  # fmt: skip
UNSUPPORTED = {
    "llada": {
        "block_type": ["sequential", "swiglu", ...], "layer_norm_type": ["default", "low_precision", ...],
        "activation_type": ["swiglu", "gelu", ...], "rope": [False, 1, ...], "rope_full_precision": [False, ...],
        "weight_tying": [True, None, ...], "include_bias": [True, None, ...], "include_qkv_bias": [True],
        "bias_for_layer_norm": [True], "layer_norm_with_affine": [False], "attention_layer_norm": [True],
        "input_emb_norm": [True], "scale_logits": [True], "alibi": [True, "yes"], "rope_scaling": [{"factor": 2}],
        "quantization_config": [{"bits": 4}], "multi_query_attention": [True, "no"], "embedding_size": [16],
    },
    "dream": {
        "hidden_act": ["gelu", ...], "tie_word_embeddings": [True, None, ...], "rope_scaling": [{"type": "yarn"}],
        "use_sliding_window": [True], "use_mrope": [True], "quantization_config": [{}], "head_dim": [8],
        "rope_parameters": [{"rope_theta": 1.0}],
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_hyper_parameter_is_required_and_typed(tmp_path: Path, family: str) -> None:
    small(tmp_path, family)
    original = (tmp_path / "config.json").read_text(encoding="utf-8")
    for key in SIZES[family]:
        for bad in (..., "16", -1, True, [4], {}, 1 << 40, 10**17):
            (tmp_path / "config.json").write_text(original, encoding="utf-8")
            edit_config(tmp_path, **{key: bad})
            if (key, bad) == ("eos_token_id", [4]):
                continue
            assert f"config.json: {key} is" in refusal(tmp_path), (key, bad)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [(family, key, value) for family in FAMILIES for key, values in UNSUPPORTED[family].items() for value in values],
)
def test_unsupported_settings_are_named(tmp_path: Path, family: str, key: str, value: Any) -> None:
    edit_config(small(tmp_path, family), **{key: value})
    text = refusal(tmp_path)
    named = "n_kv_heads" if (key, value) == ("multi_query_attention", True) else key
    assert f"config.json: {named} is" in text
    assert "expected" in text


@pytest.mark.parametrize("architectures", [..., [], "LLaDAModelLM", ["Qwen2ForCausalLM"], ["DreamModel"] * 2, [[]]])
def test_the_architecture_alone_selects_the_family(tmp_path: Path, architectures: Any) -> None:
    edit_config(small(tmp_path, "dream"), architectures=architectures)
    text = refusal(tmp_path)
    assert "architectures is" in text
    assert "['LLaDAModelLM'] or ['DreamModel']" in text


@pytest.mark.parametrize(
    ("family", "changes", "key"),
    [
        ("llada", {"d_model": 18}, "d_model"),
        ("llada", {"n_kv_heads": 3}, "n_kv_heads"),
        ("dream", {"num_key_value_heads": 3}, "num_key_value_heads"),
        ("dream", {"mask_token_id": 32}, "mask_token_id"),
        ("llada", {"eos_token_id": 32}, "eos_token_id"),
        ("llada", {"mask_token_id": 18}, "mask_token_id"),
    ],
)
def test_values_that_do_not_fit_together(tmp_path: Path, family: str, changes: dict[str, Any], key: str) -> None:
    edit_config(small(tmp_path, family), **changes)
    assert f"config.json: {key} is" in refusal(tmp_path)


def test_the_mask_id_does_not_come_from_the_generation_config(tmp_path: Path) -> None:
    edit_config(small(tmp_path, "dream"), mask_token_id=...)
    (tmp_path / "generation_config.json").write_text(json.dumps({"mask_token_id": 28}), encoding="utf-8")
    assert "mask_token_id is missing" in refusal(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": 1, "a": 2}', b"[" * 100_000,
        b'{"a": 123456789012345678901234567890}', b'{"a": "\\ud800"}', b'{"a": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_malformed_json_is_refused(tmp_path: Path, data: bytes) -> None:
    small(tmp_path, "llada")
    (tmp_path / "config.json").write_bytes(data)
    assert "config.json" in refusal(tmp_path)


# Refusals of weights


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    edit_config(small(tmp_path, "dream", layers=1), alg="origin")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["extra"] = torch.zeros(3)
    tensors["model.norm.weight"] = torch.zeros(17)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].half()
    del tensors["model.layers.0.self_attn.k_proj.bias"]
    write_tensors(tmp_path, tensors)
    text = refusal(tmp_path)
    for line in (
        "model.safetensors: tensor extra [3] is not part of the network; expected none",
        "model.safetensors: tensor model.norm.weight is [17]; expected [16]",
        "model.safetensors: tensor lm_head.weight is F16; expected F32 as the others are",
        "model.safetensors: tensor model.layers.0.self_attn.k_proj.bias is missing; expected shape [8]",
    ):
        assert line in text
    edit_config(tmp_path, use_mrope=True, hidden_act="relu")
    text = refusal(tmp_path)
    assert all(part in text for part in ("use_mrope is True", "hidden_act is 'relu'", "lm_head.weight is F16"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    small(tmp_path, "llada", shards=2)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    tensors["model.transformer.ln_f.weight"][3] = value
    save_file(tensors, shard)
    text = refusal(tmp_path)
    assert shard.name in text
    assert "model.transformer.ln_f.weight" in text


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../w.safetensors", "a/b.safetensors", "w.bin", ".safetensors", "a\\b.safetensors", "",
             "x\0.safetensors", "w.safetensors\n", 7, None, "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_hostile_index_names(tmp_path: Path, name: Any) -> None:
    small(tmp_path, "dream", shards=2)
    index = json.loads((tmp_path / INDEX_FILE).read_text(encoding="utf-8"))
    index["weight_map"]["model.norm.weight"] = name
    (tmp_path / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    text = refusal(tmp_path)
    assert INDEX_FILE in text
    assert "allowed: a plain file name" in text


def test_a_cache_snapshot_of_links_is_read(tmp_path: Path) -> None:
    blobs = small(tmp_path / "blobs", "dream", shards=2)
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert open_checkpoint(snapshot).fingerprint == open_checkpoint(blobs).fingerprint


def test_pickles_are_refused_with_a_way_out(tmp_path: Path) -> None:
    small(tmp_path, "dream")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    text = refusal(tmp_path)
    assert "pytorch_model.bin" in text
    assert "pickles are never loaded" in text
    assert "safe_serialization" in text
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert "pickles are never loaded" in refusal(tmp_path)


def test_things_that_are_not_checkpoints(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "not a directory" in refusal(tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in refusal(empty)
    small(tmp_path / "c", "llada")
    (tmp_path / "c" / "model.safetensors").unlink()
    assert "has no weights" in refusal(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").mkdir()
    assert "model.safetensors: not a regular file" in refusal(tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").rmdir()
    os.mkfifo(tmp_path / "c" / "model.safetensors")
    assert "model.safetensors: not a regular file" in refusal(tmp_path / "c")


def test_shards_and_index_must_agree(tmp_path: Path) -> None:
    small(tmp_path, "llada", shards=2)
    index_path = tmp_path / INDEX_FILE
    index = json.loads(index_path.read_text(encoding="utf-8"))
    first, second = sorted(set(index["weight_map"].values()))
    moved = next(name for name, file in index["weight_map"].items() if file == first)
    changed = {**index["weight_map"], moved: second}
    index_path.write_text(json.dumps({"weight_map": changed}), encoding="utf-8")
    text = refusal(tmp_path)
    assert f"{second}: has no tensor {moved}" in text
    assert f"{first}: tensor {moved} is not listed there" in text
    index_path.write_text(json.dumps(index), encoding="utf-8")
    shutil.copy(tmp_path / first, tmp_path / "model.safetensors")
    assert "two sets of weights" in refusal(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index_path.unlink()
    assert f"{INDEX_FILE}: missing" in refusal(tmp_path)
    index_path.write_text(json.dumps(index), encoding="utf-8")
    (tmp_path / second).unlink()
    assert f"{second}: missing" in refusal(tmp_path)


# Fingerprints


def test_a_copy_has_the_same_fingerprint_and_a_changed_weight_another(tmp_path: Path) -> None:
    first = open_checkpoint(small(tmp_path / "a", "dream")).fingerprint
    copy = tmp_path / "b"
    shutil.copytree(tmp_path / "a", copy)
    os.utime(copy / "model.safetensors", (1, 1))
    assert open_checkpoint(copy).fingerprint == first
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1000] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert open_checkpoint(copy).fingerprint != first
    shutil.copy(tmp_path / "a" / "model.safetensors", copy)
    assert open_checkpoint(copy).fingerprint == first
    edit_config(copy, rope_theta=10000.0)
    assert open_checkpoint(copy).fingerprint != first


def test_large_checkpoints_are_sampled_in_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "FULL_HASH_BYTES", 0)
    monkeypatch.setattr(checkpoint_module, "SAMPLE_BYTES", 16)
    small(tmp_path, "dream", hidden=64)
    first = open_checkpoint(tmp_path).fingerprint
    assert open_checkpoint(tmp_path).fingerprint == first
    for file in open_checkpoint(tmp_path).weight_files:
        data = file.path.read_bytes()
        for entry in file.tensors.values():
            for position in (entry.begin, entry.end - 1):
                changed = bytearray(data)
                changed[position] ^= 1
                file.path.write_bytes(changed)
                assert open_checkpoint(tmp_path).fingerprint != first
