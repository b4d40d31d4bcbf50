"""Hidden directories in which something is made before it is moved to its place; dead ones are found and removed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from d3llm_trt.termination import tidy_end

PREFIX = ".d3llm-trt-build-"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A new directory in ``parent``, made with the folders above it, that its lock marks as in use.

    At the end it is removed unless it was moved away; after a failure, so are folders that were made for it. SIGTERM
    is a failure too. What dead processes left in ``parent`` is removed first. Raises OSError.
    """
    with tidy_end(), _folders(parent):
        remove_leftovers(parent)
        path, descriptor = _hidden_name(parent), None
        try:
            descriptor = _make_and_lock(path)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            if descriptor is not None:
                os.close(descriptor)


def require_writable(folder: Path) -> None:
    """Raise OSError unless directories can be made in ``folder``, or in the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with workspace(folder):
        pass


@contextmanager
def _folders(path: Path) -> Iterator[None]:
    """``path`` and those above it, made if they are missing; those are removed again after a failure."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # where others have put something into it
            for folder in missing:
                folder.rmdir()
        raise


def _make_and_lock(path: Path) -> int:
    """Make the directory and return the descriptor that holds its lock."""
    while True:
        path.mkdir()
        with suppress(FileNotFoundError):  # another process took it for a leftover before it was locked
            return _lock(path)


def _hidden_name(parent: Path) -> Path:
    """A free name in ``parent`` that :func:`remove_leftovers` knows."""
    return parent / (PREFIX + secrets.token_hex(14))


def _lock(path: Path) -> int:
    """Lock a directory for this process. Raises FileNotFoundError if it was removed before the lock was ours."""
    descriptor = os.open(path, _DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path.stat()
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def remove_leftovers(parent: Path) -> None:
    """Remove the workspaces in ``parent`` whose process is dead: nobody holds their lock."""
    for path in parent.glob(PREFIX + "*"):
        with suppress(OSError):  # it has just gone, or belongs to somebody else
            descriptor = os.open(path, _DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def exchange(first: Path, second: Path) -> bool:
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


def move_into_place(path: Path, target: Path, overwrite: bool) -> None:
    """Put the workspace ``path`` at ``target``; with ``overwrite``, a directory there ends where ``path`` was.

    Raises OSError.
    """
    if not overwrite or not target.exists() or not any(target.iterdir()):
        path.rename(target)  # a directory takes the place of an empty one, and of no other
    elif not exchange(path, target):
        old = _hidden_name(path.parent)
        target.rename(old)
        path.rename(target)
        shutil.rmtree(old, ignore_errors=True)
