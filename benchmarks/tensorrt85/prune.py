"""Empty the GPU code for other GPUs in a library, so that it compresses well: ``prune.py ARCHITECTURE LIBRARY...``

Fat binaries stay as long as they are, and so does everything else; only the code of architectures that the GPU does not
take is overwritten with zeros, where there is code of its own beside it.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
MACHINE_CODE = 2


@dataclass(frozen=True)
class Entry:
    """Code for one architecture, in the bytes ``[start, end)`` of the library; ``kind`` 1 is PTX."""

    kind: int
    architecture: int
    start: int
    end: int


def fat_binaries(data: mmap.mmap) -> Iterator[list[Entry]]:
    """The entries of every fat binary."""
    at = data.find(MAGIC)
    while at >= 0:
        (size,) = struct.unpack_from("<Q", data, at + len(MAGIC))
        end = at + 16 + size
        if end <= len(data):
            yield list(_entries(data, at + 16, end))
        at = data.find(MAGIC, at + len(MAGIC))


def _entries(data: mmap.mmap, at: int, end: int) -> Iterator[Entry]:
    while at < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        (architecture,) = struct.unpack_from("<I", data, at + 28)
        if kind not in (1, MACHINE_CODE) or at + header + size > end:
            return
        yield Entry(kind, architecture, at + header, at + header + size)
        at += header + size


def prune(path: Path, architecture: int) -> int:
    """Returns the number of bytes that are zeros now."""
    emptied = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        for entries in fat_binaries(data):
            kept = [entry for entry in entries if (entry.kind, entry.architecture) == (MACHINE_CODE, architecture)]
            for entry in entries if kept else ():
                if entry not in kept:
                    data[entry.start : entry.end] = bytes(entry.end - entry.start)
                    emptied += entry.end - entry.start
    return emptied


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(f"{name}: {prune(Path(name), int(sys.argv[1])) >> 20} MiB emptied")
