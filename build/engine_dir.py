"""Engine directories appear all at once: written beside their place, then moved there in one step."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from d3llm_trt.errors import BuildError
from d3llm_trt.manifest import FORMAT, MANIFEST_FILE, glance
from d3llm_trt.workspaces import move_into_place, workspace
from d3llm_trt.write_errors import naming_causes

ELSEWHERE = "choose another directory"


def publish(target: Path, write: Callable[[Path], None], *, overwrite: bool = False) -> Path:
    """Call ``write`` with an empty hidden directory beside ``target``, then move that to ``target``.

    Whenever the process dies, ``target`` is what it was before or complete. With ``overwrite`` an engine that is there
    is exchanged in one step; a file system that cannot do that moves it away first, so a death in that moment leaves
    nothing at ``target``. Whatever a dead build left is removed by the next one in the same folder.
    Raises BuildError if ``target`` is taken.
    """
    target = Path(os.path.realpath(target))
    check_target(target, overwrite)
    with workspace(target.parent) as path:
        write(path)
        _sync(path)
        check_target(target, overwrite)
        move_into_place(path, target, overwrite)
        _sync_directory(target.parent)
    return target


def writing(target: Path) -> AbstractContextManager[None]:
    """Turns an error of the system into a BuildError that names ``target`` and what helps."""
    return naming_causes(target, BuildError, ELSEWHERE)


def check_target(target: Path, overwrite: bool) -> None:
    """Raise BuildError unless an engine may be put at ``target``, OSError if nothing can."""
    if os.path.ismount(target):
        fix = f"choose a directory inside it, such as {target / 'engine'}"
        raise BuildError(f"{target}: a mount point, which cannot be replaced; {fix}")
    try:
        target.lstat()
    except FileNotFoundError:
        return
    if not target.is_dir():
        raise BuildError(f"{target}: there is a file of this name; choose another engine directory")
    names = sorted(entry.name for entry in target.iterdir())
    if not names:
        return
    engine_files = _engine_files(target)
    if engine_files is None:
        raise BuildError(f"{target}: not empty and not an engine; choose another engine directory, or remove it")
    if not overwrite:
        raise BuildError(
            f"{target}: there is an engine already; choose another directory, or pass overwrite=True (--overwrite)"
        )
    if foreign := [name for name in names if name not in engine_files]:
        raise BuildError(f"{target}: {foreign[0]} is not part of the engine there; move it away before overwriting")


def _engine_files(target: Path) -> set[str] | None:
    """Names in the engine at ``target``, of whatever version and however damaged; None if it is no engine."""
    values = glance(target)
    if values.get("format") != FORMAT:
        return None
    files = values.get("files")
    return {MANIFEST_FILE, *(files if isinstance(files, dict) else ())}


def _sync(directory: Path) -> None:
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
