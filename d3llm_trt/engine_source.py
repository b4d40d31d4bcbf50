"""What a user names as a model, an engine or a checkpoint directory, as an engine directory."""

from __future__ import annotations

import os
from pathlib import Path

from d3llm_trt.config import BuildConfig
from d3llm_trt.errors import ConfigError, EngineError
from d3llm_trt.files import require_directory
from d3llm_trt.lookalikes import refuse_other_directory
from d3llm_trt.manifest import MANIFEST_FILE, REBUILD, Check, Manifest, is_engine, load_manifest, verify_files
from d3llm_trt.progress import OnProgress
from d3llm_trt.settings import from_mapping, is_integer, require

GIVE_EITHER = "give an engine or a checkpoint directory"


def source_directory(model: str | Path, revision: str | None = None) -> Path:
    """The directory of ``model``, downloaded first if it names a model of the Hugging Face Hub.

    Raises ConfigError on a revision of something else, CheckpointError if the files cannot be had.
    """
    from d3llm_trt.build.hub import local_directory

    return local_directory(model, revision)


def engine_for(
    model: str | Path,
    *,
    backend: str | None = None,
    dtype: str | None = None,
    max_batch_size: int | None = None,
    check: Check | None = None,
    progress: OnProgress | None = None,
) -> tuple[Path, Manifest]:
    """The engine directory for the directory ``model`` and its manifest, every file verified.

    A checkpoint is built into the cache directory first, unless it is there. ``check`` may refuse an engine before
    it is built or read. Raises ConfigError where an engine was built with other settings, EngineError or
    CheckpointError where a directory is not sound.
    """
    path = Path(model)
    there = check_model(path, backend=backend, dtype=dtype, max_batch_size=max_batch_size)
    if isinstance(there, BuildConfig):
        from d3llm_trt.build.cached import build_cached_engine

        path = build_cached_engine(path, there, progress, check)
        return path, load_manifest(path)
    if check is not None:
        check(there.model_config, there.build_config)
    verify_files(path, there, progress)
    return path, there


def check_model(
    path: Path, *, backend: str | None = None, dtype: str | None = None, max_batch_size: int | None = None
) -> Manifest | BuildConfig:
    """The manifest of the engine directory ``path``, or what the checkpoint there will be built for.

    Nothing large is read or imported, so it is asked first. Raises as :func:`engine_for` does.
    """
    require_directory(path, EngineError, GIVE_EITHER)
    if not is_engine(path):
        refuse_other_directory(path)
    if not os.path.lexists(path / MANIFEST_FILE):
        raise EngineError(f"{path}: has no {MANIFEST_FILE}; {GIVE_EITHER}")
    if is_engine(path):
        manifest = load_manifest(path)
        _check_settings(manifest, backend, dtype, max_batch_size)
        return manifest
    settings = {"backend": backend, "dtype": dtype, "max_batch_size": max_batch_size}
    return from_mapping(BuildConfig, {name: value for name, value in settings.items() if value is not None}, "model")


def _check_settings(manifest: Manifest, backend: str | None, dtype: str | None, max_batch_size: int | None) -> None:
    build = manifest.build_config
    for name, value, actual in (("backend", backend, build.backend), ("dtype", dtype, build.dtype)):
        if value not in (None, "auto", actual):
            raise ConfigError(
                f"{name} is {value!r}, but the engine was built with {actual!r}; leave it out, or {REBUILD}"
            )
    top = build.max_batch_size
    sound = max_batch_size is None or is_integer(max_batch_size, 1, top)
    require(sound, "max_batch_size", max_batch_size, f"integers in 1..{top}, which the engine was built for")
