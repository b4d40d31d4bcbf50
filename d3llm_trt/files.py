"""Folders that users name, and files that are replaced at once."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from d3llm_trt.errors import BuildError, ConfigError
from d3llm_trt.lookalikes import absence
from d3llm_trt.settings import require


def require_directory(path: Path, error: type[Exception], fix: str) -> None:
    """Raise ``error`` saying what ``path`` is, and ``fix``, unless it is a directory."""
    if not path.is_dir():
        state = "not a directory" if path.exists() else absence(path) if path.is_symlink() else "no such directory"
        raise error(f"{path}: {state}; {fix}")


def check_picture_path(what: str, path: Path, suffixes: tuple[str, ...], without_matplotlib: str) -> None:
    """Raise ConfigError unless a picture of one of the ``suffixes`` can be written to ``path``.

    ``what`` names the setting; ``without_matplotlib`` says that a .png needs it, where it is missing, and what to do.
    """
    require(path.suffix in suffixes, what, str(path), f"a {' or '.join(suffixes)} file")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise ConfigError(f"{what} is {str(path)!r}; allowed: a file in an existing folder that can be written to")
    if path.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(without_matplotlib)


def cache_directory() -> Path:
    """``$D3LLM_TRT_CACHE``, or ``$XDG_CACHE_HOME/d3llm-trt``, or ``~/.cache/d3llm-trt``.

    Raises BuildError where there is none of them.
    """
    if own := os.environ.get("D3LLM_TRT_CACHE"):
        return Path(own).absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():
        return shared / "d3llm-trt"
    try:
        return Path.home() / ".cache" / "d3llm-trt"
    except RuntimeError as error:
        raise BuildError("there is no home directory for the cache; set D3LLM_TRT_CACHE to a directory") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError, and then leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
