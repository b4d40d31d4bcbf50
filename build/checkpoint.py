"""Strict, memory-mapped reader of Hugging Face checkpoint directories."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from d3llm_trt.build.checkpoint_config import CONFIG_FILE, GENERATION_CONFIG_FILE, GIVE_CHECKPOINT, model_config
from d3llm_trt.build.checkpoint_files import read_weights
from d3llm_trt.build.published_tensors import packing
from d3llm_trt.build.tensor_checks import check_dtypes, check_tensors, is_float32_vector
from d3llm_trt.build.weights_file import DOWNLOAD_AGAIN, WeightsFile, is_finite
from d3llm_trt.errors import CheckpointError
from d3llm_trt.files import require_directory
from d3llm_trt.lookalikes import refuse_other_directory
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.strict_json import parse_object, read_bytes, read_object

FULL_HASH_BYTES = 1 << 30
SAMPLES, SAMPLE_BYTES = 8, 16 << 10
_HASH_CHUNK = 16 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration and headers were found sound. Weights are read when asked for.

    Args:
        path: the directory.
        config: hyper-parameters.
        dtype: of all weights, but for norms and biases in float32: "bfloat16", "float16" or "float32".
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
        digest.update(f"\n{self.config.end_token_ids}".encode())  # some may come from another file
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

    def warn_of_casts(self, dtype: str) -> None:
        """Warn if norms or biases are in float32 and the engine will have them in ``dtype``."""
        cast = [name for name, file in self._homes.items() if is_float32_vector(file.tensors[name])]
        if cast and dtype != "float32" and self.dtype != "float32":
            what = f"norms or biases in float32 ({len(cast)}, such as {cast[0]}) in a {self.dtype} checkpoint"
            warnings.warn(f"{self.path}: {what} are cast to {dtype}", stacklevel=3)

    def packed_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every packed weight in the order of ``ModelConfig.tensor_shapes``, query-key-value and gate-up fused.

        Raises CheckpointError on a tensor that holds NaN or an infinite value.
        """
        for packed, parts in packing(self.config).items():
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
    require_directory(path, CheckpointError, GIVE_CHECKPOINT)
    refuse_other_directory(path)
    problems: list[str] = []
    config, config_bytes = _read_config(path, problems)
    files, where = read_weights(path, problems)
    dtype = check_dtypes(files, problems)
    # Where a file could not be read, tensors that seem to be missing would only hide the reason.
    if config is not None and files:
        check_tensors(config, files, where, problems)
    _refuse(path, problems)
    assert config is not None
    return Checkpoint(path, config, dtype, config_bytes, tuple(files))


def check_config(path: Path) -> None:
    """Raise one CheckpointError that lists everything that is wrong with the configuration in ``path``."""
    problems: list[str] = []
    _read_config(path, problems)
    _refuse(path, problems)


def _refuse(path: Path, problems: list[str]) -> None:
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise CheckpointError(f"{path}: not a d3LLM checkpoint that this package can build:{listed}")


def _read_config(path: Path, problems: list[str]) -> tuple[ModelConfig | None, bytes]:
    """The hyper-parameters and the bytes they come from, other than the ids that end an answer."""
    generation_path = path / GENERATION_CONFIG_FILE
    generation = None
    try:
        data = read_bytes(path / CONFIG_FILE, CheckpointError, DOWNLOAD_AGAIN)
        values = parse_object(data, CONFIG_FILE, CheckpointError, DOWNLOAD_AGAIN)
        if os.path.lexists(generation_path):
            generation = read_object(generation_path, CheckpointError, f"{DOWNLOAD_AGAIN}, or remove it")
    except CheckpointError as error:
        problems.append(str(error))
        return None, b""
    config, found = model_config(values, generation)
    problems += found
    return config, data
