"""The one place that imports TensorRT: the full one, its lean runtime or TensorRT for RTX, by the backend's name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from d3llm_trt.dtypes import FP8, dtype_name
from d3llm_trt.errors import EngineError

if TYPE_CHECKING:
    import torch


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
LEAN = "tensorrt_lean"
OLDEST_NATIVE = "11.0"  # the first full TensorRT whose own attention ends at lengths


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
        module = _import_first((package.module, LEAN) if lean and backend == "tensorrt" else (package.module,))
    except ImportError as error:
        raise EngineError(f"{needs}: {error}; {install}") from error
    require_version(module, package.oldest, needs, install)
    return module


def _import_first(names: tuple[str, ...]) -> Any:
    """The first module that can be imported. Raises the ImportError of the first one if none can."""
    errors = []
    for name in names:
        try:
            return import_module(name)
        except ImportError as error:
            errors.append(error)
    raise errors[0]


def check_tensorrt(backend: str, attention: str | None) -> None:
    """Raise EngineError without a TensorRT that has what a plan of ``backend`` with this ``attention`` is made of."""
    trt = load_tensorrt(backend)
    if backend == "tensorrt" and attention == "native":
        needs = f"attention is 'native', which needs TensorRT {OLDEST_NATIVE} or newer"
        require_version(trt, OLDEST_NATIVE, needs, f"choose plugin, or pip install 'tensorrt-cu13>={OLDEST_NATIVE}'")


def require_version(trt: Any, oldest: str, needs: str, fix: str) -> None:
    """Raise EngineError if the TensorRT module is older than ``oldest``; ``needs`` and ``fix`` are its words."""
    if version_numbers(trt.__version__) < version_numbers(oldest):
        raise EngineError(f"{needs}, and {trt.__version__} is installed; {fix}")


def version_numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version, so that versions can be compared; what is no number is left out."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def tensorrt_dtype(trt: Any, dtype: torch.dtype) -> Any:
    """What the module calls a dtype."""
    name = dtype_name(dtype)
    return getattr(trt, "fp8" if name == FP8 else name)
