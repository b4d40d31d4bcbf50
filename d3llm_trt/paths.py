"""Folders that users name, and files that are replaced at once."""

from __future__ import annotations

import os
from pathlib import Path


def require_directory(path: Path, error: type[Exception], fix: str) -> None:
    """Raise ``error`` saying what ``path`` is, and ``fix``, unless it is a directory."""
    if not path.is_dir():
        state = "not a directory" if path.exists() else "no such directory"
        raise error(f"{path}: {state}; {fix}")


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises OSError, and then leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
