"""The old plugin registry with the calls of the new one: a plugin library there registers its creators itself."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from d3llm_trt.plugins.library import KERNELS, find


class Registry:
    """One registry of the process. ``library`` has our plugins for the old interface, and stands in for any other."""

    def __init__(self, real_module: Any, library: Path | None) -> None:
        self._real_module = real_module
        self._library = library
        self._handle: Any = None
        self._asked = False

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        """None where no library has it that was asked for."""
        creator = self._real().get_plugin_creator(name, version, namespace) if self._asked else None
        return None if creator is None else Creator(creator)

    def load_library(self, path: str) -> Any:
        """A handle. The library at ``path`` is for the new interface; ours is loaded in its place."""
        assert Path(path).exists()
        self._asked = True
        return self.load()

    def load(self) -> Any:
        """Register our plugins, once; None without a library."""
        if self._handle is None and self._library is not None:
            ctypes.CDLL(str(find(KERNELS)))  # which ours needs
            core = ctypes.CDLL("libnvinfer.so.8")
            core.getPluginRegistry.restype = ctypes.c_void_p
            self._handle = ctypes.CDLL(str(self._library))
            register = self._handle.d3llm_register_creators
            register.argtypes, register.restype = [ctypes.c_void_p], ctypes.c_bool
            assert register(core.getPluginRegistry())
        return self._handle

    def copy_plugin(self) -> Any:
        """The plugin that copies; None without a library."""
        if self.load() is None:
            return None
        creator = self._real().get_plugin_creator("D3llmCopy", "1", "")
        return creator.create_plugin("copy", self._real_module.PluginFieldCollection([]))

    def _real(self) -> Any:
        return self._real_module.get_plugin_registry()


class Creator:
    """A creator that is not told the phase: its plugins are for building, and those in a plan for running."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def create_plugin(self, layer: str, fields: Any, phase: Any) -> Any:
        """None where the plugin refuses its fields."""
        return self._real.create_plugin(layer, fields)
