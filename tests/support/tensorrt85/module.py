"""The stand-in module itself: the names of the new API, each over the old one or of the bridge."""

from __future__ import annotations

import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.support.tensorrt85 import building, running
from tests.support.tensorrt85.plugins import Registry
from tests.support.tensorrt85.types import MISSING, DataType, Weights

# What has not changed between 8.5 and the new API.
SAME = (
    "ILogger", "Logger", "MatrixOperation", "ElementWiseOperation", "UnaryOperation", "ActivationType",
    "ReduceOperation", "MemoryPoolType", "ProfilingVerbosity", "PluginField", "PluginFieldCollection",
    "PluginFieldType", "TensorIOMode", "LayerInformationFormat",
)  # fmt: skip


# The bridge has what 11.0 has; the rest of the version is whose work it is.
VERSION = "11.0.8.5.3.1"


class Callbacks:
    """The base class of progress monitors and stream writers, which the bridge calls."""


def stand_in(real: Any, plugin_library: Path | None = None) -> ModuleType:
    """A module with the names that build and runtime use, over ``real``, TensorRT 8.5.

    ``plugin_library`` is our plugin for the old interface.
    """
    module = ModuleType("tensorrt")
    registry = Registry(real, plugin_library)
    names: dict[str, Any] = {name: getattr(real, name) for name in SAME}
    names |= {
        "__version__": VERSION,
        "__spec__": ModuleSpec("tensorrt", None),  # torch's profiler looks for it
        "float32": DataType.FLOAT, "float16": DataType.HALF, "bfloat16": MISSING, "fp8": MISSING,
        "int32": DataType.INT32, "int64": DataType.INT64, "bool": DataType.BOOL,
        "Weights": partial(Weights, real),
        "Builder": partial(building.Builder, real, registry),
        "Runtime": partial(running.Runtime, real, registry),
        "Refitter": partial(running.Refitter, real),
        "IProgressMonitor": Callbacks, "IStreamWriter": Callbacks,
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=1),
        "KVCacheMode": SimpleNamespace(LINEAR="LINEAR"),
        "AttentionNormalizationOp": SimpleNamespace(SOFTMAX="SOFTMAX"),
        "CausalMaskKind": SimpleNamespace(NONE="NONE"),
        "TensorRTPhase": SimpleNamespace(BUILD="BUILD", RUNTIME="RUNTIME"),
        "PreviewFeature": SimpleNamespace(ALIASED_PLUGIN_IO_10_03=building.ALIASED_PLUGIN_IO),
        "ExecutionContextAllocationStrategy": SimpleNamespace(USER_MANAGED=running.USER_MANAGED),
        # The old one leaves no weights out of a plan, but takes others afterwards.
        "BuilderFlag": SimpleNamespace(
            TF32=real.BuilderFlag.TF32, STRIP_PLAN=real.BuilderFlag.REFIT, REFIT_INDIVIDUAL=real.BuilderFlag.REFIT
        ),
    }  # fmt: skip
    vars(module).update(names)
    return module


def install(plugin_library: Path | None = None) -> ModuleType:
    """Put the stand-in where ``import tensorrt`` finds it; TensorRT 8.5 must be installed."""
    import tensorrt as real

    assert real.__version__.startswith("8.5.")
    module = stand_in(real, plugin_library)
    sys.modules["tensorrt"] = module
    return module
