"""Errors of the system while something is written: each cause with the advice that helps."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from d3llm_trt.errors import D3llmError

FREE_SPACE = "free some space"
_ADVICE = {
    errno.EACCES: "change the permissions of that folder",
    errno.EPERM: "change the permissions of that folder",
    errno.EROFS: "mount that file system for writing",
    errno.ENOENT: "make the missing folder",
    errno.ENOTDIR: "correct the name, of which a part is a file and not a folder",
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: f"{FREE_SPACE} within your quota",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def naming_causes(target: Path, kind: type[D3llmError], elsewhere: str) -> Iterator[None]:
    """Turns an OSError into an error of this ``kind`` that names ``target``, the cause and what helps.

    ``elsewhere`` says how another place is chosen, for causes that have no better advice too.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{target}: cannot be written: {cause_and_advice(error, elsewhere)}") from error


def is_about_writing(error: OSError) -> bool:
    """Whether a place that cannot be written is the cause, rather than a network."""
    return error.errno in _ADVICE


def cause_and_advice(error: OSError, elsewhere: str) -> str:
    """The cause, the folder it was met in where that is known, and what to do about it."""
    known = isinstance(error.filename, str) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
    where = f" in {Path(error.filename).parent}" if known else ""
    advice = _ADVICE.get(error.errno or 0)
    return f"{error.strerror or error}{where}; {elsewhere if advice is None else f'{advice}, or {elsewhere}'}"
