"""Seeded damage to checkpoints of both families: one CheckpointError that names the file, never a wrong model."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.errors import CheckpointError
from tests.support.checkpoints import INDEX_FILE, edit_config, make_checkpoint

KINDS = [(family, shards) for family in ("llada", "dream") for shards in (1, 2)]
SEEDS = range(6)
CHUNK = b"\x00\x01{}\xff"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    root = tmp_path_factory.mktemp("sound")
    sizes: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "vocab": 40}
    return {kind: make_checkpoint(root / f"{kind[0]}{kind[1]}", kind[0], shards=kind[1], **sizes) for kind in KINDS}


def weights_file(path: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path.glob("*.safetensors")))


def header_length(path: Path) -> int:
    return int(struct.unpack("<Q", path.read_bytes()[:8])[0])


def flip(path: Path, low: int, high: int, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(low, high)] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def edit_header(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data, length = path.read_bytes(), header_length(path)
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# Each damages the checkpoint and returns the names of files of which one must be in the message.


def cut_weights(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])
    return [file.name]


def grow_weights(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)
    file.write_bytes(file.read_bytes() + CHUNK[: rng.randint(1, 5)])
    return [file.name]


def header_length_lies(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)
    flip(file, 0, 8, rng)
    return [file.name]


def random_bytes(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)
    file.write_bytes(rng.randbytes(rng.randrange(0, 4000)))
    return [file.name]


def rename_tensor(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        tensors[rng.choice([name + "x", name.replace("weight", "bias2"), "a" + name, name[:-1]])] = tensors.pop(name)

    rewrite(file, change)
    return [file.name]


def wrong_shape(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        old = tensors[name]
        tensors[name] = rng.choice([old[:-1].clone(), old[None].clone(), torch.cat([old, old]), old[:0].clone()])

    rewrite(file, change)
    return [file.name]


def wrong_dtype(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int8, torch.bool)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = rng.choice(sorted(tensors))
        tensors[name] = tensors[name].to(rng.choice(dtypes))

    rewrite(file, change)
    return [file.name]


def header_dtype_lies(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)

    def change(header: dict[str, Any]) -> None:
        name = rng.choice(sorted(header.keys() - {"__metadata__"}))
        header[name]["dtype"] = rng.choice(["I32", "U32", "F16", "F99", "", "f32", None, 5, "F32 "])

    edit_header(file, change)
    return [file.name]


def header_offsets_lie(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)

    def change(header: dict[str, Any]) -> None:
        name = rng.choice(sorted(header.keys() - {"__metadata__"}))
        begin, end = header[name]["data_offsets"]
        bad: list[Any] = [[begin + 4, end + 4], [begin, end - 4], [end, begin], [begin], None, [-4, end], ["0", "4"]]
        header[name]["data_offsets"] = rng.choice(bad)

    edit_header(file, change)
    return [file.name]


def header_of_another_form(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)

    def change(header: dict[str, Any]) -> None:
        name = rng.choice(sorted(header.keys() - {"__metadata__"}))
        if rng.random() < 0.3:
            header["__metadata__"] = rng.choice([None, [], "x", {"format": 1}])
            return
        bad: list[Any] = [None, [], {}, "x", {**header[name], "extra": 1}, {**header[name], "shape": [16.0, 16]}]
        header[name] = rng.choice(bad)

    edit_header(file, change)
    return [file.name]


def lose_tensor(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[rng.choice(sorted(tensors))]

    rewrite(file, change)
    return [file.name]


def extra_tensor(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)
    rewrite(file, lambda tensors: tensors.update({f"model.extra.{rng.randrange(99)}": torch.zeros(4)}))
    return [file.name]


def not_finite(path: Path, rng: random.Random) -> list[str]:
    file = weights_file(path, rng)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        flat = tensors[rng.choice(sorted(tensors))].view(-1)
        flat[rng.randrange(flat.numel())] = rng.choice([float("nan"), float("inf"), float("-inf")])

    rewrite(file, change)
    return [file.name]


def hostile_index(path: Path, rng: random.Random) -> list[str]:
    names = [
        "/etc/passwd",
        "../model.safetensors",
        "a/../b.safetensors",
        "\0",
        "x.bin",
        "",
        None,
        3,
        [],
        {"a": 1},
        "..",
    ]
    index = path / INDEX_FILE
    weight_map: dict[str, Any] = dict.fromkeys(load_file(weights_file(path, rng)), "model.safetensors")
    weight_map[rng.choice(sorted(weight_map))] = rng.choice(names)
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return [INDEX_FILE]


def index_and_shards_differ(path: Path, rng: random.Random) -> list[str]:
    index_path = path / INDEX_FILE
    names = sorted(file.name for file in path.glob("*.safetensors"))
    if not index_path.exists():
        values: Any = {"weight_map": {"model.norm.weight": "missing.safetensors"}}
        index_path.write_text(json.dumps(values), encoding="utf-8")
        return [INDEX_FILE]
    values = json.loads(index_path.read_text(encoding="utf-8"))
    tensor = rng.choice(sorted(values["weight_map"]))
    old = values["weight_map"].pop(tensor)
    if rng.random() < 0.5:
        values["weight_map"][tensor] = next(name for name in names if name != old)
    index_path.write_text(json.dumps(values), encoding="utf-8")
    return names


def cut_json(path: Path, rng: random.Random) -> list[str]:
    file = rng.choice([file for file in (path / "config.json", path / INDEX_FILE) if file.exists()])
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])
    return [file.name]


def bad_config_value(path: Path, rng: random.Random) -> list[str]:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    llada = "d_model" in config
    keys = ["vocab_size", "rms_norm_eps", "rope_theta", "mask_token_id", "eos_token_id", "pad_token_id"]
    keys += ["d_model", "n_heads", "n_layers"] if llada else ["hidden_size", "num_attention_heads", "num_hidden_layers"]
    edit_config(path, **{rng.choice(keys): rng.choice([..., None, "x", [], {}, -1, True, 10**17, 10**30])})
    return ["config.json"]


def other_sizes(path: Path, rng: random.Random) -> list[str]:
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    llada = "d_model" in config
    key = rng.choice(["d_model", "n_layers", "mlp_hidden_size"] if llada else ["hidden_size", "num_hidden_layers"])
    edit_config(path, **{key: config[key] * rng.choice([2, 3])})
    return [INDEX_FILE, *(file.name for file in path.glob("*.safetensors"))]


def unsupported_setting(path: Path, rng: random.Random) -> list[str]:
    llada = {
        "rope": False, "alibi": True, "weight_tying": True, "include_bias": True, "block_type": "swiglu",
        "layer_norm_type": "default", "activation_type": "gelu", "scale_logits": True, "input_emb_norm": True,
    }  # fmt: skip
    dream = {"hidden_act": "gelu", "tie_word_embeddings": True, "use_mrope": True, "rope_scaling": {"factor": 4.0}}
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    values: dict[str, Any] = llada if "d_model" in config else dream
    key = rng.choice(sorted(values))
    edit_config(path, **{key: values[key]})
    return ["config.json"]


DAMAGE = [
    cut_weights, grow_weights, header_length_lies, random_bytes, rename_tensor, wrong_shape, wrong_dtype,
    header_dtype_lies, header_offsets_lie, header_of_another_form, lose_tensor, extra_tensor, not_finite,
    hostile_index, index_and_shards_differ, cut_json, bad_config_value, other_sizes, unsupported_setting,
]  # fmt: skip


def read_all(path: Path) -> dict[str, torch.Tensor]:
    opened = open_checkpoint(path)
    return {name: tensor.clone() for name, tensor in opened.packed_tensors()}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_refused(
    damage: Callable[[Path, random.Random], list[str]],
    kind: tuple[str, int],
    sound: dict[tuple[str, int], Path],
    tmp_path: Path,
) -> None:
    for seed in SEEDS:
        path = tmp_path / str(seed)
        shutil.copytree(sound[kind], path)
        names = damage(path, random.Random(f"{damage.__name__}{kind}{seed}"))
        with pytest.raises(CheckpointError) as caught:
            read_all(path)
        assert any(name in str(caught.value) for name in names), (seed, names, str(caught.value))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_a_flipped_header_bit_is_refused_or_changes_nothing(
    kind: tuple[str, int], sound: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    path = tmp_path / "c"
    shutil.copytree(sound[kind], path)
    expected = read_all(path)
    rng = random.Random(f"flip{kind}")
    for _ in range(100):
        file = weights_file(path, rng)
        original = file.read_bytes()
        end = 8 + header_length(file)
        flip(file, 8, end, rng)
        if harmless(original[8:end], file.read_bytes()[8:end]):
            given = read_all(path)
            assert all(torch.equal(given[name], tensor) for name, tensor in expected.items())
        else:
            with pytest.raises(CheckpointError, match=file.name):
                read_all(path)
        file.write_bytes(original)


def harmless(before: bytes, after: bytes) -> bool:
    """Whether two headers, one bit apart, describe the same tensors: the bit is in the free text of the metadata."""
    try:
        old, new = json.loads(before), json.loads(after.decode())
    except ValueError:
        return False
    old_metadata, new_metadata = old.pop("__metadata__"), new.pop("__metadata__", None)
    return bool(old == new and new_metadata is not None and old_metadata != new_metadata)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_a_flipped_config_bit_never_escapes_as_another_error(
    kind: tuple[str, int], sound: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    path = tmp_path / "c"
    shutil.copytree(sound[kind], path)
    file, rng = path / "config.json", random.Random(f"config{kind}")
    original = file.read_bytes()
    for _ in range(100):
        flip(file, 0, len(original), rng)
        try:
            opened = open_checkpoint(path)
        except CheckpointError as error:
            assert "config.json" in str(error) or ".safetensors" in str(error)
        else:
            # Still a sound configuration: another value of a free key, or of a number that no tensor depends on.
            assert opened.config.tensor_shapes() == open_checkpoint(sound[kind]).config.tensor_shapes()
        file.write_bytes(original)
