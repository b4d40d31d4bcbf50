"""The engine of a checkpoint in the cache directory, found there or built there, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from d3llm_trt.build.builder import build
from d3llm_trt.build.cache_entries import DIGITS, lock_of, note_source
from d3llm_trt.build.check import check_place, prompt_facts, settings_for
from d3llm_trt.build.checkpoint import Checkpoint, open_checkpoint
from d3llm_trt.build.tokenizer import SOURCE_FILES
from d3llm_trt.config import BuildConfig, EngineConfig
from d3llm_trt.errors import BuildError, EngineError
from d3llm_trt.files import cache_directory
from d3llm_trt.manifest import FORMAT_VERSION, Check, file_facts, load_manifest, verify_files
from d3llm_trt.progress import OnProgress
from d3llm_trt.version import __version__
from d3llm_trt.write_errors import cause_and_advice

_LOG = logging.getLogger(__name__)


def build_cached_engine(
    checkpoint_dir: str | Path,
    build_config: BuildConfig | None = None,
    progress: OnProgress | None = None,
    check: Check | None = None,
) -> Path:
    """The engine for a checkpoint from the cache directory, built there if it is not there or damaged.

    Processes that ask at the same time wait for the one that builds. An engine found there is read once and compared
    with its checksums. Raises as build_engine does, and ConfigError where there is no cache directory.
    """
    checkpoint = open_checkpoint(checkpoint_dir)
    settings = settings_for(checkpoint, build_config)
    if check is not None:
        check(checkpoint.config, settings)
    entry = cache_directory() / cache_key(checkpoint, settings)
    if _is_good(entry, progress):  # without the lock, which a read-only cache cannot have
        _LOG.info("the engine of %s is in the cache: %s", checkpoint.path, entry)
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_of(entry)):
            if not _is_good(entry, progress):
                if entry.exists():
                    shutil.rmtree(entry)
                check_place(checkpoint, entry, settings)
                _LOG.info("the engine of %s is not in the cache, so it is built: %s", checkpoint.path, entry)
                build(checkpoint, entry, settings, progress)
                note_source(entry, checkpoint.path)
    except OSError as error:
        fix = "set D3LLM_TRT_CACHE to a directory that can be written"
        raise BuildError(f"{entry.parent}: the cache cannot be used: {cause_and_advice(error, fix)}") from error
    return entry


def cache_key(checkpoint: Checkpoint, settings: EngineConfig) -> str:
    """The name of an engine's directory: a digest of everything that it is made from."""
    # The fingerprint covers configuration and weights; the tokenizer is in the engine too.
    tokenizer = {name: file_facts(path).sha256 for name in SOURCE_FILES if (path := checkpoint.path / name).is_file()}
    prompts = prompt_facts(settings)
    # The suffix says how the file is read.
    calibrated = None if prompts is None else (prompts.sha256, Path(settings.calibration_prompts or "").suffix.lower())
    configured = {**settings.to_dict(), "calibration_prompts": calibrated}
    parts = [checkpoint.fingerprint, configured, tokenizer, FORMAT_VERSION, __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _is_good(entry: Path, progress: OnProgress | None) -> bool:
    with suppress(EngineError):  # as of an entry that is not there
        verify_files(entry, load_manifest(entry), progress)
        return True
    return False
