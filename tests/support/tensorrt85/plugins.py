"""The old plugin registry with the calls of the new one: a plugin library there registers its creators itself."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from d3llm_trt.plugins.library import KERNELS


class Registry:
    """One registry of the process. ``library`` is our plugin for the old interface, which stands in for any other."""

    def __init__(self, real_module: Any, library: Path | None) -> None:
        self._real = real_module.get_plugin_registry()
        self._library = library

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        """None where no library has it."""
        creator = self._real.get_plugin_creator(name, version, namespace)
        return None if creator is None else Creator(creator)

    def load_library(self, path: str) -> Any:
        """A handle, or None. The library at ``path`` is for the new interface; ours is loaded in its place."""
        assert self._library is not None
        ctypes.CDLL(str(Path(path).with_name(KERNELS)))  # which ours needs
        core = ctypes.CDLL("libnvinfer.so.8")
        core.getPluginRegistry.restype = ctypes.c_void_p
        handle = ctypes.CDLL(str(self._library))
        handle.d3llm_register_creator.argtypes = [ctypes.c_void_p]
        handle.d3llm_register_creator.restype = ctypes.c_bool
        return handle if handle.d3llm_register_creator(core.getPluginRegistry()) else None


class Creator:
    """A creator that is not told the phase: its plugins are for building, and those in a plan for running."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def create_plugin(self, layer: str, fields: Any, phase: Any) -> Any:
        """None where the plugin refuses its fields."""
        return self._real.create_plugin(layer, fields)
