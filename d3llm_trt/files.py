"""Folders that users name, and files that are replaced at once."""

from __future__ import annotations

import glob
import importlib.util
import os
import time
from contextlib import suppress
from pathlib import Path

from d3llm_trt.errors import ConfigError
from d3llm_trt.lookalikes import absence
from d3llm_trt.settings import require
from d3llm_trt.workspaces import require_writable
from d3llm_trt.write_errors import naming_causes

LONGEST_WRITE = 3600.0  # seconds


def require_directory(path: Path, error: type[Exception], fix: str) -> None:
    """Raise ``error`` saying what ``path`` is, and ``fix``, unless it is a directory."""
    if not path.is_dir():
        state = "not a directory" if path.exists() else absence(path) if path.is_symlink() else "no such directory"
        raise error(f"{path}: {state}; {fix}")


def check_picture_path(what: str, path: Path, suffixes: tuple[str, ...], without_matplotlib: str) -> None:
    """Raise ConfigError unless a picture of one of the ``suffixes`` can be written to ``path``.

    ``what`` names the setting; ``without_matplotlib`` says that a .png needs it, where it is missing, and what to do.
    """
    require(path.suffix.lower() in suffixes, what, str(path), f"a {' or '.join(suffixes)} file")
    require(not path.is_dir(), what, str(path), "a file, and this is a folder")
    require(path.parent.is_dir(), what, str(path), "a file in a folder that exists; make the folder, or choose another")
    with naming_causes(path, ConfigError, "choose another folder"):
        require_writable(path.parent)
    if path.suffix.lower() == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(without_matplotlib)


def cache_directory() -> Path:
    """``$D3LLM_TRT_CACHE``, or ``$XDG_CACHE_HOME/d3llm-trt``, or ``~/.cache/d3llm-trt``.

    Raises ConfigError where there is none of them.
    """
    if own := os.environ.get("D3LLM_TRT_CACHE"):
        return Path(own).absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "d3llm-trt"
    try:
        return Path.home() / ".cache" / "d3llm-trt"
    except RuntimeError as error:
        raise ConfigError("there is no home directory for the cache; set D3LLM_TRT_CACHE to a directory") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError, and then leaves nothing behind.

    Files that dead processes left of the same one are removed: by their age, since writing takes no hour.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for other in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.tmp"):
        with suppress(OSError):  # another process was faster
            if other.stat().st_mtime < time.time() - LONGEST_WRITE:
                other.unlink()
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
