"""The compiled kernels: where the library is, loading it once, and calling its launchers."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d3llm_trt.errors import PluginError
from d3llm_trt.plugins.c_structs import LAUNCHERS, Params
from d3llm_trt.version import __version__

KERNELS = "libd3llm_kernels.so"
TENSORRT = "libd3llm_tensorrt.so"
VARIABLE = "D3LLM_TRT_LIBRARY"
FOLDER = Path(__file__).parent / "lib"
HOW_TO_BUILD = f"run `make plugins` in the source tree, or set {VARIABLE} to a built library or its folder"


@dataclass(frozen=True)
class Library:
    """Loaded kernels: their launchers by name, without the prefix."""

    path: Path
    launchers: Mapping[str, Any]
    last_error: Any

    def launch(self, name: str, params: Params, stream: int) -> None:
        """Enqueue one launcher on a ``cudaStream_t``. Raises PluginError with the library's message."""
        if self.launchers[name](ctypes.byref(params), stream):
            raise PluginError(self.last_error().decode())


def find(name: str = KERNELS) -> Path:
    """Path of a compiled library of this package. Raises PluginError that says how to build it."""
    folder = _folder()
    path = folder / name
    if path.is_file():
        return path
    raise PluginError(f"no {name} in {folder}; {HOW_TO_BUILD}")


def _folder() -> Path:
    """The folder of the libraries: the environment variable names it, or the kernels' file in it; else plugins/lib."""
    setting = os.environ.get(VARIABLE)
    if not setting:
        return FOLDER
    path = Path(setting)
    if not path.exists():
        raise PluginError(f"{VARIABLE} is {setting!r}, which does not exist; {HOW_TO_BUILD}")
    if path.is_file() and path.name not in (KERNELS, TENSORRT):
        raise PluginError(f"{VARIABLE} is {setting!r}; allowed: a folder with {KERNELS}, or that file itself")
    return path if path.is_dir() else path.parent


def available() -> bool:
    """Whether the kernels were compiled. Raises PluginError if they cannot be loaded."""
    try:
        find()
    except PluginError:
        if os.environ.get(VARIABLE):
            raise
        return False
    load()
    return True


def open_library(path: Path) -> ctypes.CDLL:
    """A compiled library. Raises PluginError if it cannot be loaded, or is of another version than this package."""
    try:
        handle = ctypes.CDLL(str(path))
        version = _function(handle, "version", ctypes.c_char_p)().decode()
    except (OSError, AttributeError) as error:
        raise PluginError(f"{path}: cannot be loaded: {error}; {HOW_TO_BUILD}") from error
    if version != __version__:
        raise PluginError(f"{path} is version {version}, this package {__version__}; {HOW_TO_BUILD}")
    return handle


@functools.cache
def load() -> Library:
    """The kernels, loaded once. Raises PluginError if they are missing or of another version than this package."""
    path = find()
    handle = open_library(path)
    try:
        last_error = _function(handle, "last_error", ctypes.c_char_p)
        launchers = {name: _function(handle, name, ctypes.c_int) for name in LAUNCHERS}
    except AttributeError as error:
        raise PluginError(f"{path}: cannot be loaded: {error}; {HOW_TO_BUILD}") from error
    for name, params in LAUNCHERS.items():
        launchers[name].argtypes = [ctypes.POINTER(params), ctypes.c_void_p]
    return Library(path, launchers, last_error)


def _function(handle: ctypes.CDLL, name: str, result: Any) -> Any:
    function = getattr(handle, f"d3llm_{name}")
    function.restype, function.argtypes = result, []
    return function
