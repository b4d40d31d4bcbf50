"""The engines that the cache directory holds: what each was built from, and their removal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from d3llm_trt.errors import EngineError
from d3llm_trt.files import cache_directory, replace_file
from d3llm_trt.manifest import MANIFEST_FILE, Manifest, load_manifest
from d3llm_trt.workspaces import remove_leftovers

DIGITS = 32  # of the hexadecimal name of an entry


@dataclass(frozen=True)
class CacheEntry:
    """An engine in the cache.

    Args:
        path: its directory.
        source: the checkpoint it was built from; None where that was not noted.
        manifest: None if it cannot be read, as after an upgrade; such an engine is built anew when it is needed.
        size: bytes of its files.
        built: when it was published.
    """

    path: Path
    source: str | None
    manifest: Manifest | None
    size: int
    built: datetime


def lock_of(entry: Path) -> Path:
    """The file by whose lock one process at a time builds the engine ``entry``."""
    return entry.with_suffix(".lock")


def source_of(entry: Path) -> Path:
    """The file that names the checkpoint of the engine ``entry``."""
    return entry.with_suffix(".source")


def note_source(entry: Path, checkpoint: Path) -> None:
    """Remember what the engine ``entry`` was built from. Raises OSError."""
    replace_file(source_of(entry), os.fsencode(checkpoint.absolute()))


def cache_entries() -> list[CacheEntry]:
    """Every engine in the cache directory, the newest first. Raises ConfigError where there is no cache directory."""
    entries = [_entry(path) for path in _paths(cache_directory())]
    return sorted(entries, key=lambda entry: entry.built, reverse=True)


def remove_entry(entry: CacheEntry) -> bool:
    """Remove an engine. False if a process is building it. Raises OSError.

    Its lock, an empty file, stays: others may be waiting for it.
    """
    with suppress(Timeout), FileLock(lock_of(entry.path), timeout=0):
        shutil.rmtree(entry.path)
        source_of(entry.path).unlink(missing_ok=True)
        return True
    return False


def remove_dead_builds() -> None:
    """Remove what builds left in the cache directory that were killed."""
    remove_leftovers(cache_directory())


def _paths(directory: Path) -> Iterator[Path]:
    """Directories that are named like entries; whatever else a user keeps there is left alone."""
    for path in directory.glob("[0-9a-f]" * DIGITS):
        if path.is_dir() and not path.is_symlink() and (path / MANIFEST_FILE).is_file():
            yield path


def _entry(path: Path) -> CacheEntry:
    manifest = source = None
    with suppress(EngineError):
        manifest = load_manifest(path)
    with suppress(OSError):
        source = os.fsdecode(source_of(path).read_bytes())
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    built = datetime.fromtimestamp((path / MANIFEST_FILE).stat().st_mtime, tz=timezone.utc)
    return CacheEntry(path, source, manifest, size, built)
