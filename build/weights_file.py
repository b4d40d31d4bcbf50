"""The safetensors format: headers checked before anything trusts them, files written as a stream."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import re
import stat
import struct
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from d3llm_trt.dtypes import CHECKPOINT_DTYPES, DTYPES, torch_dtype
from d3llm_trt.errors import CheckpointError
from d3llm_trt.lookalikes import absence, other_content, unreadable
from d3llm_trt.manifest import FileFacts
from d3llm_trt.model.packing import TensorForm
from d3llm_trt.settings import is_integer
from d3llm_trt.strict_json import parse_object

MAX_HEADER_BYTES = 100_000_000
DOWNLOAD_AGAIN = "download the file again"
_LENGTH = struct.Struct("<Q")
_BITS = re.compile(r"(?:BF|F|I|U|C)(\d+)(?:_.*)?")
_FP8_NAN = 0x7F  # either sign
_CHUNK_ELEMENTS = 8 << 20


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies; ``begin`` and ``end`` are offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class WeightsFile:
    """One safetensors file whose header was found sound; its data is mapped when first asked for."""

    path: Path
    size: int
    header: bytes
    tensors: Mapping[str, TensorEntry]
    _maps: list[mmap.mmap] = field(default_factory=list, repr=False, compare=False)

    def read(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """Yield pieces of the file by begin and end; the map would be slow, since these may lie far apart."""
        try:
            with self.path.open("rb") as file:
                for begin, end in ranges:
                    file.seek(begin)
                    piece = file.read(end - begin)
                    _check(len(piece) == end - begin, self.path, "changed while it was read")
                    yield piece
        except OSError as error:
            raise CheckpointError(f"{self.path}: {unreadable(self.path, error, DOWNLOAD_AGAIN)}") from error

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor that shares memory with the mapped file. Writing to it does not change the file."""
        entry = self.tensors[name]
        dtype = torch_dtype(CHECKPOINT_DTYPES[entry.dtype])
        if not self._maps:
            self._maps.append(self._map())
        data = torch.frombuffer(self._maps[0], dtype=torch.uint8)[entry.begin : entry.end]
        if entry.begin % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(entry.shape)

    def give_pages_back(self) -> None:
        """Pages that were read come from the file again when they are needed; what was written to them is lost."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Drop the map; it goes when the last tensor over it does."""
        self._maps.clear()

    def _map(self) -> mmap.mmap:
        # Without MAP_NORESERVE Linux refuses a private map larger than its memory, though nothing is written to it.
        no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
        flags, access = mmap.MAP_PRIVATE | no_reserve, mmap.PROT_READ | mmap.PROT_WRITE
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: cannot be mapped: {error}; {DOWNLOAD_AGAIN}") from error
        size = len(mapped)
        _check(size == self.size, self.path, f"changed while it was read: {size} bytes, before {self.size}")
        return mapped


@contextmanager
def not_resident(files: Collection[WeightsFile], every: float = 0.1) -> Iterator[None]:
    """Give mapped pages of ``files`` back after each ``every`` seconds meanwhile, so that few stay in memory."""
    ended = threading.Event()

    def give_back() -> None:
        with suppress(OSError):  # where memory is locked, pages stay
            while not ended.wait(every):
                for file in files:
                    file.give_pages_back()

    thread = threading.Thread(target=give_back, name="give pages back", daemon=True)
    try:
        thread.start()
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()


def open_weights(path: Path) -> WeightsFile:
    """Read and check the header of ``path``. Raises CheckpointError naming the file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file; expected a safetensors file; {DOWNLOAD_AGAIN}")
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
            _check(len(start) == _LENGTH.size, path, f"only {status.st_size} bytes, too short for a safetensors file")
            (length,) = _LENGTH.unpack(start)
            top = min(MAX_HEADER_BYTES, status.st_size - _LENGTH.size)
            if not 2 <= length <= top:
                raise CheckpointError(f"{path}: {_other_file(start + file.read(64), length, top)}")
            header = file.read(length)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {absence(path)}; {DOWNLOAD_AGAIN}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {unreadable(path, error, DOWNLOAD_AGAIN)}") from error
    _check(len(header) == length, path, "changed while it was read")
    values = parse_object(header, f"{path}: header", CheckpointError, DOWNLOAD_AGAIN)
    return WeightsFile(path, status.st_size, header, _entries(path, values, _LENGTH.size + length, status.st_size))


def _check(condition: bool, path: Path, problem: str) -> None:
    if not condition:
        raise CheckpointError(f"{path}: {problem}; {DOWNLOAD_AGAIN}")


def _other_file(start: bytes, length: int, top: int) -> str:
    """What a file with these first bytes is, if its header cannot be of that length, and what to do."""
    if start.startswith(b"PK"):
        return f"a zip archive, such as torch.save writes, and pickles are never loaded; {DOWNLOAD_AGAIN}"
    if (other := other_content(start, "weights")) is not None:
        return f"{other.cause}; {other.fix or DOWNLOAD_AGAIN}"
    return f"not a safetensors file, or damaged: header length is {length}; allowed: 2 to {top}; {DOWNLOAD_AGAIN}"


def _entries(path: Path, header: dict[str, Any], data_start: int, size: int) -> dict[str, TensorEntry]:
    metadata = header.pop("__metadata__", {})
    sound = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    _check(sound, path, "__metadata__ is not a mapping of texts to texts")
    entries = {name: _entry(path, name, values, data_start) for name, values in header.items()}
    end = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        _check(entry.begin == end, path, f"tensor {name} begins at byte {entry.begin}; expected {end}")
        end = entry.end
    _check(end == size, path, f"truncated or damaged: its tensors end at byte {end}, the file at {size}")
    return entries


def _entry(path: Path, name: str, values: Any, data_start: int) -> TensorEntry:
    keys = {"dtype", "shape", "data_offsets"}
    _check(isinstance(values, dict) and values.keys() == keys, path, f"header of tensor {name} is {values!r}")
    dtype, shape, offsets = values["dtype"], values["shape"], values["data_offsets"]
    _check(isinstance(dtype, str), path, f"dtype of tensor {name} is {dtype!r}")
    _check(_are_sizes(shape), path, f"shape of tensor {name} is {shape!r}")
    _check(_are_sizes(offsets) and len(offsets) == 2, path, f"data_offsets of tensor {name} are {offsets!r}")
    length = offsets[1] - offsets[0]
    _check(length >= 0, path, f"data_offsets of tensor {name} are {offsets!r}")
    bits = 8 if dtype == "BOOL" else int(match[1]) if (match := _BITS.fullmatch(dtype)) else None
    _check(bits is not None, path, f"dtype of tensor {name} is {dtype!r}")
    needed = math.prod(shape) * (bits or 0)
    _check(length * 8 == needed, path, f"tensor {name} has {length} bytes; {dtype} {shape} takes {needed // 8}")
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(is_integer(value, 0) for value in values)


def file_bytes(forms: Mapping[str, TensorForm]) -> int:
    """Size of a file with these tensors."""
    return len(header_bytes(forms)) + sum(form.num_bytes for form in forms.values())


def header_bytes(forms: Mapping[str, TensorForm]) -> bytes:
    """Length and header of a file with these tensors, one behind the other in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, form in forms.items():
        begin, end = end, end + form.num_bytes
        dtype = DTYPES[form.dtype].safetensors
        header[name] = {"dtype": dtype, "shape": list(form.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


def write_weights(
    path: Path, forms: Mapping[str, TensorForm], tensors: Iterable[tuple[str, torch.Tensor]]
) -> FileFacts:
    """Write ``tensors``, which come in the order of ``forms``, converting them to its dtypes piece by piece.

    Raises OverflowError naming the tensor that has a value beyond the range of its dtype.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in _pieces(forms, tensors):
            digest.update(piece)
            size += file.write(piece)
    return FileFacts(digest.hexdigest(), size)


def _pieces(
    forms: Mapping[str, TensorForm], tensors: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[bytes | memoryview]:
    yield header_bytes(forms)
    for (name, form), (other, tensor) in zip(forms.items(), tensors, strict=True):
        if (name, form.shape) != (other, tuple(tensor.shape)):
            raise ValueError(f"tensor {other} {tuple(tensor.shape)} comes where {name} {form.shape} was announced")
        dtype = torch_dtype(form.dtype)
        flat = tensor.contiguous().view(-1)
        for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
            chunk = flat[start : start + _CHUNK_ELEMENTS]
            converted = chunk.to(dtype)
            if chunk.dtype != dtype and not is_finite(converted):
                raise OverflowError(name)
            yield converted.view(torch.uint8).numpy().data


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; takes no memory, but for FP8, which has no infinities."""
    if tensor.dtype == torch.float8_e4m3fn:
        return not bool(((tensor.view(torch.uint8) & _FP8_NAN) == _FP8_NAN).any())
    low, high = tensor.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())
