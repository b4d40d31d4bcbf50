"""Engine directories appear all at once: written beside their place, then moved there in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from d3llm_trt.errors import BuildError
from d3llm_trt.manifest import FORMAT, MANIFEST_FILE, glance

FREE_SPACE = "free some space, or choose another directory"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def publish(target: Path, write: Callable[[Path], None], *, overwrite: bool = False) -> Path:
    """Call ``write`` with an empty hidden directory beside ``target``, then move that to ``target``.

    Whenever the process dies, ``target`` is what it was before or complete. With ``overwrite`` an engine that is there
    is exchanged in one step; a file system that cannot do that moves it away first, so a death in that moment leaves
    nothing at ``target``. Whatever a dead build left is removed by the next one for the same ``target``.
    Raises BuildError if ``target`` is taken.
    """
    target = Path(os.path.realpath(target))
    check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    with _workspace(target) as workspace:
        write(workspace)
        _sync(workspace)
        check_target(target, overwrite)
        _move(workspace, target, overwrite)
        _sync_directory(target.parent)
    return target


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns an error of the system into a BuildError that names ``target``."""
    try:
        yield
    except OSError as error:
        raise BuildError(f"{target}: cannot be written: {error}; {FREE_SPACE}") from error


def check_target(target: Path, overwrite: bool) -> None:
    """Raise BuildError unless an engine may be put at ``target``."""
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


def _prefix(target: Path) -> str:
    # Of fixed length, so that a target with the longest possible name has room for it.
    return f".d3llm-trt-build-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"


@contextmanager
def _workspace(target: Path) -> Iterator[Path]:
    """A new directory beside ``target`` that its lock marks as in use; removed at the end if it is still there."""
    while True:
        path = target.parent / (_prefix(target) + secrets.token_hex(6))
        path.mkdir()
        try:
            descriptor = _lock(path)
        except FileNotFoundError:
            continue  # another build took it for a leftover before it was locked
        try:
            yield path
            return
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(descriptor)


def _lock(path: Path) -> int:
    """Lock a directory for this process. Raises FileNotFoundError if it was removed before the lock was ours."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path.stat()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_leftovers(target: Path) -> None:
    """Remove workspaces for ``target`` whose process is dead: nobody holds their lock."""
    for path in target.parent.glob(_prefix(target) + "*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another build was faster
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue  # in use
        finally:
            os.close(descriptor)


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


def _move(workspace: Path, target: Path, overwrite: bool) -> None:
    """Put ``workspace`` at ``target``; an engine that was there ends where ``workspace`` was."""
    if not overwrite or not target.exists() or not any(target.iterdir()):
        workspace.rename(target)  # a directory takes the place of an empty one, and of no other
    elif not _exchange(workspace, target):
        old = workspace.with_name(_prefix(target) + secrets.token_hex(6))
        target.rename(old)
        workspace.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two directories in one step. False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(second))
