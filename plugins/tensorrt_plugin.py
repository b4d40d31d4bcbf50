"""The compiled TensorRT plugin: which build of it is here, and loading it into a registry of TensorRT."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d3llm_trt.errors import PluginError
from d3llm_trt.plugins.library import HOW_TO_BUILD, TENSORRT, find, open_library
from d3llm_trt.version import __version__

NAME, VERSION, NAMESPACE = "D3llmBidirectionalAttention", "1", ""


@dataclass(frozen=True)
class PluginLibrary:
    """One build of the plugin library; ``version`` is the package's that it was compiled from."""

    path: Path
    version: str
    sha256: str


def find_plugin_library() -> PluginLibrary:
    """The library of this package. Raises PluginError if it is missing, cannot be loaded, or is of another version."""
    return _identify(find(TENSORRT))


@functools.cache
def _identify(path: Path) -> PluginLibrary:
    open_library(path)
    return PluginLibrary(path, __version__, hashlib.sha256(path.read_bytes()).hexdigest())


def load_plugin(registry: Any) -> Any:
    """The plugin's creator; the ``IPluginRegistry`` loads the library unless it has it. Raises PluginError."""
    creator = registry.get_creator(NAME, VERSION, NAMESPACE)
    if creator is None:
        path = find_plugin_library().path
        if registry.load_library(str(path)) is None:
            raise PluginError(f"{path}: TensorRT cannot load it; see its messages")
        creator = registry.get_creator(NAME, VERSION, NAMESPACE)
    if creator is None:
        raise PluginError(f"TensorRT has no plugin {NAME} {VERSION} after loading {path}; {HOW_TO_BUILD}")
    return creator
