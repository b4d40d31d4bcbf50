"""Data types and weights: int64 becomes int32, and there are no bfloat16 and FP8."""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import numpy as np


class DataType(enum.Enum):
    """The types of the new API that the old one has too, or can imitate; the value is the old one's name."""

    FLOAT = "float32"
    HALF = "float16"
    INT32 = "int32"
    INT64 = "int32 again"  # equal values would make one member of the two
    BOOL = "bool"

    @property
    def is_float(self) -> bool:
        """Whether layers compute in it."""
        return self in (DataType.FLOAT, DataType.HALF)

    def of(self, real: Any) -> Any:
        """The type of the old API ``real``."""
        return getattr(real, self.value.split()[0])


MISSING = object()  # bfloat16 and fp8 can be named, and no tensor has them
NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
}


class Weights:
    """Values at an address. They are not copied, but for int64 ones."""

    def __init__(self, real: Any, dtype: DataType, address: int, count: int) -> None:
        self.dtype = dtype
        kind = np.dtype(NUMPY[dtype])
        memory = (ctypes.c_byte * (count * kind.itemsize)).from_address(address)
        self.values = np.frombuffer(memory, dtype=kind)
        if dtype is DataType.INT64:
            small = self.values.astype(np.int32)
            assert (small == self.values).all(), "an int64 constant does not fit int32"
            self.values = small
        self.real = real.Weights(self.values)
