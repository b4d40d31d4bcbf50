"""Strict, memory-mapped reader of Hugging Face checkpoint directories; the families' own tensor names end here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from d3llm_trt.build.checkpoint_config import model_config
from d3llm_trt.build.weights_file import DOWNLOAD_AGAIN, WeightsFile, is_finite, open_weights
from d3llm_trt.dtypes import CHECKPOINT_DTYPES
from d3llm_trt.errors import CheckpointError
from d3llm_trt.files import require_directory
from d3llm_trt.model.config import Family, ModelConfig
from d3llm_trt.strict_json import parse_object, read_bytes

CONFIG_FILE, SINGLE_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
FULL_HASH_BYTES = 1 << 30
SAMPLES, SAMPLE_BYTES = 8, 16 << 10
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_HASH_CHUNK = 16 << 20

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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration and headers were found sound. Weights are read when asked for.

    Args:
        path: the directory.
        config: hyper-parameters.
        dtype: of all weights: "bfloat16", "float16" or "float32".
        weight_files: the files they are in.
    """

    path: Path
    config: ModelConfig
    dtype: str
    _config_bytes: bytes = field(repr=False)
    weight_files: tuple[WeightsFile, ...] = field(repr=False)

    @cached_property
    def _homes(self) -> dict[str, WeightsFile]:
        return {name: file for file in self.weight_files for name in file.tensors}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights; the same for a copy of the same files anywhere.

        Up to 1 GiB of weights are hashed in full. Beyond that: names, sizes, headers, and of every tensor 8 evenly
        spaced pieces of 16 KiB, the first and the last among them. Small tensors are hashed in full, so a change that
        is missed lies inside a large tensor and between all of its pieces.
        """
        digest = hashlib.sha256(self._config_bytes)
        in_full = sum(file.size for file in self.weight_files) <= FULL_HASH_BYTES
        for file in self.weight_files:
            digest.update(f"\n{file.path.name} {file.size} {len(file.header)}\n".encode())
            digest.update(file.header)
            for piece in file.read(_whole(file) if in_full else _samples(file)):
                digest.update(piece)
        return digest.hexdigest()

    def tensor(self, name: str) -> torch.Tensor:
        """A published tensor, memory-mapped."""
        return self._homes[name].tensor(name)

    def close(self) -> None:
        """Give back the memory that the mapped files take; tensors that were asked for stay valid."""
        for file in self.weight_files:
            file.close()

    def packed_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every packed weight in the order of ``ModelConfig.tensor_shapes``, query-key-value and gate-up fused.

        Raises CheckpointError on a tensor that holds NaN or an infinite value.
        """
        for packed, parts in _packing(self.config).items():
            tensors = [self._finite_tensor(name) for name in parts]
            yield packed, tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def _finite_tensor(self, name: str) -> torch.Tensor:
        tensor = self.tensor(name)
        if not is_finite(tensor):
            path = self._homes[name].path
            raise CheckpointError(f"{path}: tensor {name} holds NaN or infinite values; {DOWNLOAD_AGAIN}")
        return tensor


def _whole(file: WeightsFile) -> Iterator[tuple[int, int]]:
    for begin in range(0, file.size, _HASH_CHUNK):
        yield begin, min(begin + _HASH_CHUNK, file.size)


def _samples(file: WeightsFile) -> Iterator[tuple[int, int]]:
    for entry in sorted(file.tensors.values(), key=lambda entry: entry.begin):
        spare = entry.end - entry.begin - SAMPLE_BYTES
        if spare <= SAMPLES * SAMPLE_BYTES:
            yield entry.begin, entry.end
            continue
        for sample in range(SAMPLES):
            begin = entry.begin + spare * sample // (SAMPLES - 1)
            yield begin, begin + SAMPLE_BYTES


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint directory; reads its configuration and the headers of its weights.

    Raises one CheckpointError that lists everything that is wrong.
    """
    path = Path(path)
    require_directory(path, CheckpointError, "expected a Hugging Face checkpoint directory")
    problems: list[str] = []
    config, config_bytes = _read_config(path, problems)
    files = _read_weights(path, problems)
    dtype = _check_dtypes(files, problems)
    # Where a file could not be read, tensors that seem to be missing would only hide the reason.
    if config is not None and files:
        _check_tensors(config, files, problems)
    if problems or config is None:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise CheckpointError(f"{path}: not a d3LLM checkpoint that this package can build:{listed}")
    return Checkpoint(path, config, dtype, config_bytes, tuple(files))


def _read_config(path: Path, problems: list[str]) -> tuple[ModelConfig | None, bytes]:
    try:
        data = read_bytes(path / CONFIG_FILE, CheckpointError, DOWNLOAD_AGAIN)
        values = parse_object(data, CONFIG_FILE, CheckpointError, DOWNLOAD_AGAIN)
    except CheckpointError as error:
        problems.append(str(error))
        return None, b""
    config, found = model_config(values)
    problems += found
    return config, data


def _read_weights(path: Path, problems: list[str]) -> list[WeightsFile]:
    """Every file of weights, its header checked; none at all if one of them cannot be read."""
    files: list[WeightsFile] = []
    found = len(problems)
    try:
        index = _read_index(path)
        names = sorted(set(index.values())) if index is not None else [SINGLE_FILE]
    except CheckpointError as error:
        problems.append(str(error))
        return []
    for name in names:
        try:
            files.append(open_weights(path / name))
        except CheckpointError as error:
            problems.append(str(error))
    if len(problems) > found:
        return []
    if index is not None:
        _check_index(index, files, problems)
    return files


def _read_index(path: Path) -> dict[str, str] | None:
    """The shard of every tensor; None for a checkpoint in one file."""
    index_path = path / INDEX_FILE
    single = (path / SINGLE_FILE).exists()
    if not index_path.exists():
        if not single:
            raise CheckpointError(_without_weights(path))
        return None
    if single:
        fix = f"remove {SINGLE_FILE} if it is left over, or the index"
        raise CheckpointError(f"{index_path}: lies beside {SINGLE_FILE}, so there are two sets of weights; {fix}")
    data = read_bytes(index_path, CheckpointError, DOWNLOAD_AGAIN)
    weight_map = parse_object(data, str(index_path), CheckpointError, DOWNLOAD_AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map is not an object of tensor and file names; {DOWNLOAD_AGAIN}")
    for tensor, name in weight_map.items():
        if not _is_shard_name(name):
            allowed = "a plain file name that ends in .safetensors"
            raise CheckpointError(f"{index_path}: file of {tensor} is {name!r}; allowed: {allowed}; {DOWNLOAD_AGAIN}")
    return weight_map


def _is_shard_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= 200 and _SHARD_NAME.fullmatch(name) is not None


def _without_weights(path: Path) -> str:
    wanted = f"expected {SINGLE_FILE}, or shards and {INDEX_FILE}"
    if pickles := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)):
        fix = "load the model in transformers and call save_pretrained(directory, safe_serialization=True)"
        return f"{path}: has only {pickles[0]}, and pickles are never loaded; {wanted}; to convert, {fix}"
    if shards := sorted(file.name for file in path.glob("*.safetensors")):
        return f"{path / INDEX_FILE}: missing, though {shards[0]} is there; {DOWNLOAD_AGAIN}"
    return f"{path}: has no weights; {wanted}"


def _check_index(index: dict[str, str], files: list[WeightsFile], problems: list[str]) -> None:
    for file in files:
        listed = {tensor for tensor, name in index.items() if name == file.path.name}
        for tensor in sorted(listed - file.tensors.keys()):
            problems.append(f"{file.path.name}: has no tensor {tensor}, which {INDEX_FILE} expects there")
        for tensor in sorted(file.tensors.keys() - listed):
            problems.append(f"{file.path.name}: tensor {tensor} is not listed there in {INDEX_FILE}")


def _check_dtypes(files: list[WeightsFile], problems: list[str]) -> str:
    """The one dtype of all tensors: that of most of them where they differ, which is a problem."""
    dtypes = [entry.dtype for file in files for entry in file.tensors.values()]
    allowed = [dtype for dtype in dtypes if dtype in CHECKPOINT_DTYPES]
    usual = max(sorted(set(allowed)), key=allowed.count) if allowed else ""
    expected = f"{usual} as the others are" if usual else "BF16, F16 or F32"
    for file in files:
        for name, entry in file.tensors.items():
            if entry.dtype != usual:
                problems.append(f"{file.path.name}: tensor {name} is {entry.dtype}; expected {expected}")
    return CHECKPOINT_DTYPES.get(usual, "")


def _check_tensors(config: ModelConfig, files: list[WeightsFile], problems: list[str]) -> None:
    expected = _published_shapes(config)
    homes = {name: file for file in files for name in file.tensors}
    where = files[0].path.name if len(files) == 1 else INDEX_FILE
    for name in sorted(expected.keys() - homes.keys()):
        problems.append(f"{where}: tensor {name} is missing; expected shape {list(expected[name])}")
    for name, file in homes.items():
        shape = file.tensors[name].shape
        if name not in expected:
            problems.append(f"{file.path.name}: tensor {name} {list(shape)} is not part of the network; expected none")
        elif shape != expected[name]:
            problems.append(f"{file.path.name}: tensor {name} is {list(shape)}; expected {list(expected[name])}")


def _packing(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Packed name -> full published names, in packed order."""
    tensors, prefix = _TENSORS[config.family], _LAYER_PREFIX[config.family]
    packing: dict[str, tuple[str, ...]] = {}
    for packed in config.tensor_shapes():
        if packed in tensors:
            packing[packed] = tensors[packed]
            continue
        _, layer, name = packed.split(".", 2)
        packing[packed] = tuple(f"{prefix}.{layer}.{part}" for part in tensors[name])
    return packing


def _published_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    kv_rows = config.num_kv_heads * config.head_dim
    fused = {3: (config.num_heads * config.head_dim, kv_rows, kv_rows), 2: (config.intermediate_size,) * 2}
    shapes: dict[str, tuple[int, ...]] = {}
    packed_shapes = config.tensor_shapes()
    for packed, parts in _packing(config).items():
        shape = packed_shapes[packed]
        rows = fused.get(len(parts), (shape[0],))
        shapes |= {name: (count, *shape[1:]) for name, count in zip(parts, rows, strict=True)}
    return shapes
