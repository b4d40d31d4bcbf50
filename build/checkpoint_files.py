"""The files that hold a checkpoint's weights: one, or shards that an index lists."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from d3llm_trt.build.published_tensors import is_buffer
from d3llm_trt.build.tensor_checks import few
from d3llm_trt.build.weights_file import DOWNLOAD_AGAIN, WeightsFile, open_weights
from d3llm_trt.errors import CheckpointError
from d3llm_trt.strict_json import parse_object, read_bytes

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")


def read_weights(path: Path, problems: list[str]) -> tuple[list[WeightsFile], str]:
    """Every file of weights, its header checked, and the name of the file that lists all tensors.

    There are no files if one of them cannot be read. Buffers are left out.
    """
    before, files = len(problems), []
    try:
        index = read_index(path)
    except CheckpointError as error:
        problems.append(str(error))
        return [], INDEX_FILE
    names = [SINGLE_FILE] if index is None else sorted(set(index.values()))
    for name in names:
        try:
            files.append(_without_buffers(open_weights(path / name)))
        except CheckpointError as error:
            problems.append(str(error))
    if len(problems) > before:
        return [], INDEX_FILE
    if index is not None:
        _check_index(index, files, problems)
    return files, files[0].path.name if len(files) == 1 else INDEX_FILE


def _without_buffers(file: WeightsFile) -> WeightsFile:
    return replace(file, tensors={name: entry for name, entry in file.tensors.items() if not is_buffer(name)})


def read_index(path: Path) -> dict[str, str] | None:
    """The file of every tensor; None for a checkpoint in one file without an index.

    Raises CheckpointError where there are no weights or two sets of them.
    """
    index_path, single = path / INDEX_FILE, path / SINGLE_FILE
    if not os.path.lexists(index_path):
        if not os.path.lexists(single):
            raise CheckpointError(_without_weights(path))
        return None
    data = read_bytes(index_path, CheckpointError, DOWNLOAD_AGAIN)
    weight_map = parse_object(data, str(index_path), CheckpointError, DOWNLOAD_AGAIN).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: weight_map is not an object of tensor and file names; {DOWNLOAD_AGAIN}")
    for tensor, name in weight_map.items():
        if not _is_shard_name(name):
            allowed = "a plain file name that ends in .safetensors"
            raise CheckpointError(f"{index_path}: file of {tensor} is {name!r}; allowed: {allowed}; {DOWNLOAD_AGAIN}")
    if os.path.lexists(single):
        _refuse_two_sets(path, set(weight_map.values()))
    return weight_map


def _is_shard_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= 200 and _SHARD_NAME.fullmatch(name) is not None


def _refuse_two_sets(path: Path, listed: set[str]) -> None:
    """An index may lie beside the single file if it names that file alone."""
    if listed == {SINGLE_FILE}:
        return
    others = sorted(listed - {SINGLE_FILE})
    if not any(os.path.lexists(path / name) for name in others):
        fix = f"remove the index if it is left over from before {SINGLE_FILE} was made"
        raise CheckpointError(f"{path / INDEX_FILE}: lists {others[0]}, which is missing, beside {SINGLE_FILE}; {fix}")
    fix = f"remove {SINGLE_FILE} if it is left over, or the index"
    raise CheckpointError(f"{path / INDEX_FILE}: lies beside {SINGLE_FILE}, so there are two sets of weights; {fix}")


def _without_weights(path: Path) -> str:
    wanted = f"expected {SINGLE_FILE}, or shards and {INDEX_FILE}"
    if pickles := sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern)):
        fix = "load the model in transformers and call save_pretrained(directory, safe_serialization=True)"
        return f"{path}: has only {pickles[0]}, and pickles are never loaded; {wanted}; to convert, {fix}"
    if shards := sorted(file.name for file in path.glob("*.safetensors")):
        return f"{path / INDEX_FILE}: missing, though {shards[0]} is there; {DOWNLOAD_AGAIN}"
    return f"{path}: has no weights; {wanted}"


def _check_index(index: Mapping[str, str], files: list[WeightsFile], problems: list[str]) -> None:
    """Note tensors that are not where the index says."""
    lost, unlisted = [], []
    for file in files:
        name, there = file.path.name, file.tensors.keys()
        listed = {tensor for tensor, home in index.items() if home == name and not is_buffer(tensor)}
        lost += [f"{name}: has no tensor {one}, which {INDEX_FILE} expects there" for one in sorted(listed - there)]
        unlisted += [f"{name}: tensor {one} is not listed there in {INDEX_FILE}" for one in sorted(there - listed)]
    problems += few(lost, f"are not where {INDEX_FILE} expects them")
    problems += few(unlisted, f"are not listed in {INDEX_FILE}")
