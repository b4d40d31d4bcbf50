"""The memory of a decoding state as the gather and commit kernels take it."""

from __future__ import annotations

import ctypes
from dataclasses import fields
from typing import TypeVar

from d3llm_trt.plugins.c_structs import Progress, Settings
from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings, dtype_of, shape_of
from d3llm_trt.plugins.tensors import address

Struct = TypeVar("Struct", bound=ctypes.Structure)


class BoundState:
    """The addresses of all fields of a decoding state, checked once; it keeps their memory alive.

    Args:
        settings, progress: contiguous tensors on one device, for all slots.

    Raises PluginError on a field of another device, dtype, shape or layout.
    """

    def __init__(self, settings: RequestSettings, progress: RequestProgress) -> None:
        self._memory = settings, progress
        self.num_slots, self.max_seq_len = progress.canvas.shape
        self.device = progress.canvas.device
        self.settings = self._bound(settings, Settings)
        self.progress = self._bound(progress, Progress)

    def _bound(self, part: RequestSettings | RequestProgress, struct: type[Struct]) -> Struct:
        addresses = {
            item.name: address(
                f"decoding state: {item.name}",
                getattr(part, item.name),
                dtype_of(item),
                shape_of(item, self.num_slots, self.max_seq_len),
                self.device,
            )
            for item in fields(part)
        }
        return struct(**addresses)
