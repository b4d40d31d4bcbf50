"""The one place that imports TensorRT: the full one, its lean runtime or TensorRT for RTX, by the backend's name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from d3llm_trt.errors import EngineError


@dataclass(frozen=True)
class Package:
    """What a backend needs: a module, its package on PyPI, and the oldest version that has what we use."""

    module: str
    name: str
    oldest: str


PACKAGES = {
    "tensorrt": Package("tensorrt", "tensorrt-cu13", "10.15.1"),
    "tensorrt-rtx": Package("tensorrt_rtx", "tensorrt-rtx-cu13", "1.7"),
}
LEAN = Package("tensorrt_lean", "tensorrt-lean-cu13", "10.15.1")


def load_tensorrt(backend: str, *, lean: bool = False) -> Any:
    """The Python module of ``backend``. Raises EngineError with what is installed and what to install.

    Args:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        lean: take TensorRT's lean runtime where the full one is missing; it runs version-compatible plans only.
    """
    package = PACKAGES[backend]
    needs = f"backend {backend!r} needs {package.name} {package.oldest} or newer"
    install = f"pip install '{package.name}>={package.oldest}'"
    try:
        module = _import_first((package, LEAN) if lean and backend == "tensorrt" else (package,))
    except ImportError as error:
        raise EngineError(f"{needs}: {error}; {install}") from error
    require_version(module, package.oldest, needs, install)
    return module


def _import_first(packages: tuple[Package, ...]) -> Any:
    """The first module that can be imported. Raises the first one's ImportError."""
    try:
        return import_module(packages[0].module)
    except ImportError:
        for other in packages[1:]:
            try:
                return import_module(other.module)
            except ImportError:
                continue
        raise


def require_version(trt: Any, oldest: str, needs: str, fix: str) -> None:
    """Raise EngineError if the TensorRT module is older than ``oldest``; ``needs`` and ``fix`` are its words."""
    if version_numbers(trt.__version__) < version_numbers(oldest):
        raise EngineError(f"{needs}, and {trt.__version__} is installed; {fix}")


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, so that versions can be compared; what is no number is left out."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
