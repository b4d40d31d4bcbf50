"""A file of answers, one JSON object per line, that a later run can go on with after any end of this one."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d3llm_trt.cli.streams import json_line
from d3llm_trt.errors import ConfigError
from d3llm_trt.write_errors import naming_causes

_LOG = logging.getLogger(__name__)
ANOTHER = "choose another file for --output"


@dataclass(frozen=True)
class Answered:
    """What a line of the file says of its prompt.

    Args:
        sha256: of the prompt as it was given.
        error: why it failed; None if it was answered.
    """

    sha256: str
    error: str | None


class AnswersFile:
    """Appends whole lines, each written at once. Only one process at a time has the file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def append(self, row: Any) -> None:
        """Add one line. Raises ConfigError if it cannot be written, and then leaves no part of it."""
        data = f"{json_line(row)}\n".encode()
        with naming_causes(self.path, ConfigError, "go on with --resume"):
            size = os.fstat(self._descriptor).st_size
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                self._cut(size)
                raise

    def answered(self) -> Iterator[Answered]:
        """What the lines say, the first prompt's first. A last line that was not written to its end is dropped.

        Raises ConfigError on a line that is no answer to the prompt of its number, and then changes nothing.
        """
        end = 0
        if not self._is_file:  # a device or a pipe, which may go on for ever
            return
        with self.path.open("rb") as file:
            for index, line in enumerate(file):
                if not line.endswith(b"\n"):
                    self._drop_torn(index, line, end)
                    return
                end += len(line)
                yield self._answer(index, line)

    def _answer(self, index: int, line: bytes) -> Answered:
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            row = json.loads(line)
            if row["index"] == index:
                return Answered(str(row["input_sha256"]), row["error"])
        raise self._is_none(index)

    def _drop_torn(self, index: int, line: bytes, begin: int) -> None:
        start = f'{{"index": {index}, "input_sha256": "'.encode()
        if not (line.startswith(start) or start.startswith(line)):
            raise self._is_none(index)
        _LOG.info("%s:%d: the last line was not written to its end, so it is dropped", self.path, index + 1)
        self._cut(begin)

    def _is_none(self, index: int) -> ConfigError:
        return ConfigError(f"{self.path}:{index + 1}: no answer to prompt {index + 1}; {ANOTHER}")

    def _cut(self, size: int) -> None:
        if self._is_file:
            os.ftruncate(self._descriptor, size)


@contextmanager
def opened_answers(path: Path, resume: bool, prompts: Path | None) -> Iterator[AnswersFile]:
    """The file at ``path``, which holds nothing yet unless ``resume``.

    Raises ConfigError if it cannot be written, holds something, is in use, or is the file of the ``prompts``.
    """
    with naming_causes(path, ConfigError, ANOTHER):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        _check(path, descriptor, resume, prompts)
        yield AnswersFile(path, descriptor)
    finally:
        os.close(descriptor)


def _check(path: Path, descriptor: int, resume: bool, prompts: Path | None) -> None:
    facts = os.fstat(descriptor)
    if prompts is not None and prompts.exists() and os.path.samestat(facts, prompts.stat()):
        raise ConfigError(f"--output is {str(path)!r}, which is the file of the prompts; {ANOTHER}")
    if resume and not stat.S_ISREG(facts.st_mode):
        raise ConfigError(f"--output is {str(path)!r}; allowed with --resume: a regular file; {ANOTHER}")
    if facts.st_size and not resume:
        fix = "add --resume to go on with it, or remove it"
        raise ConfigError(f"--output is {str(path)!r}, which holds something already; {fix}")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"--output is {str(path)!r}, to which another process writes; wait for it") from error
    except OSError:  # a file system without locks
        return
