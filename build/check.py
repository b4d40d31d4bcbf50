"""What speaks against a build, found before any work: checkpoint, settings, target, disk, missing libraries."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from d3llm_trt.build.checkpoint import Checkpoint, open_checkpoint
from d3llm_trt.build.engine_dir import ELSEWHERE, check_target, writing
from d3llm_trt.build.quantize import check_sizes
from d3llm_trt.build.weights_file import file_bytes
from d3llm_trt.config import BuildConfig, EngineConfig
from d3llm_trt.errors import BuildError, ConfigError, PluginError
from d3llm_trt.manifest import FileFacts, PluginFacts, file_facts
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import packed_tensors
from d3llm_trt.plugins.tensorrt_plugin import find_plugin_library
from d3llm_trt.prompt_files import read_prompt_file
from d3llm_trt.settings import as_config
from d3llm_trt.tensorrt_module import check_tensorrt
from d3llm_trt.workspaces import require_writable
from d3llm_trt.write_errors import FREE_SPACE

SPARE_BYTES = 64 << 20


def check_build(
    checkpoint_dir: str | Path,
    engine_dir: str | Path,
    build_config: BuildConfig | Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Checkpoint, EngineConfig]:
    """The checkpoint and the settings of a build that nothing speaks against. Raises as build_engine does."""
    checkpoint = open_checkpoint(checkpoint_dir)
    settings = settings_for(checkpoint, build_config)
    check_place(checkpoint, Path(engine_dir), settings, overwrite=overwrite)
    return checkpoint, settings


def settings_for(checkpoint: Checkpoint, build_config: BuildConfig | Mapping[str, Any] | None) -> EngineConfig:
    """``build_config``, by default ``BuildConfig()``, resolved for a checkpoint; its prompt file was read once.

    Raises ConfigError. A pipe cannot be read a second time, so it is no prompt file.
    """
    config = as_config(BuildConfig, build_config, "build_config")
    settings = config.resolved(checkpoint.config.max_position_embeddings, checkpoint.dtype)
    if settings.calibration_prompts is not None:
        path = Path(settings.calibration_prompts)
        if not os.path.isfile(path):  # noqa: PTH113 (which takes a name that is too long)
            fix = "correct the name, or leave it out for generated prompts"
            raise ConfigError(f"calibration_prompts is {str(path)!r}; allowed: a regular file; {fix}")
        read_prompt_file(path)
    return settings


def check_place(checkpoint: Checkpoint, target: Path, settings: EngineConfig, *, overwrite: bool = False) -> None:
    """Raise BuildError or EngineError on sizes of layers, the target, the disk or libraries that are missing."""
    if settings.backend == "torch" and settings.quantization is not None:
        check_sizes(checkpoint.config)
    with writing(target):
        check_target(target, overwrite)
        require_writable(Path(os.path.realpath(target)).parent)
        _check_space(target, _engine_bytes(checkpoint.config, settings))
    if settings.tensorrt is not None:
        check_tensorrt(settings.backend, settings.tensorrt.attention)
    if settings.backend == "tensorrt" and not torch.cuda.is_available():
        raise BuildError(
            "tensorrt builds on the GPU that a plan is for, and there is none; choose tensorrt-rtx or torch"
        )
    plugin_facts(settings)


def plugin_facts(settings: EngineConfig) -> PluginFacts | None:
    """Which build of the plugin library the plan will need, if any. Raises BuildError if it is missing."""
    if settings.tensorrt is None or settings.tensorrt.attention != "plugin":
        return None
    try:
        library = find_plugin_library()
    except PluginError as error:
        raise BuildError(f"attention is 'plugin', which needs its library: {error}; or choose native") from error
    return PluginFacts(library.version, library.sha256)


def prompt_facts(settings: EngineConfig) -> FileFacts | None:
    """Size and checksum of the file of prompts, if there is one."""
    return None if settings.calibration_prompts is None else file_facts(Path(settings.calibration_prompts))


def _engine_bytes(config: ModelConfig, settings: EngineConfig) -> int:
    """Bytes at the peak of the build: what is built from packed weights is written beside them."""
    packed = file_bytes(packed_tensors(config, settings.dtype))
    if settings.backend != "torch":
        return 2 * packed
    if settings.quantization is None:
        return packed
    return packed + file_bytes(packed_tensors(config, settings.dtype, settings.quantization))


def _check_space(target: Path, size: int) -> None:
    parent = Path(os.path.realpath(target)).parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < size + SPARE_BYTES:
        needs = f"the engine takes {size} bytes and some room to work"
        raise BuildError(f"{target}: {needs}, and {free} bytes are free on the disk; {FREE_SPACE}, or {ELSEWHERE}")
