"""d3llm-trt: compiled engines and a fast unmasking loop for d3LLM diffusion language models.

Names are loaded on first use, so that ``import d3llm_trt`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d3llm_trt.version import __version__

if TYPE_CHECKING:
    from d3llm_trt.build.builder import build_engine
    from d3llm_trt.config import BuildConfig
    from d3llm_trt.runtime.decoding.config import DecodingConfig
    from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
    from d3llm_trt.runtime.llm import LLM
    from d3llm_trt.runtime.outputs import CompletionOutput, RequestOutput

__all__ = [
    "LLM",
    "BuildConfig",
    "CompletionOutput",
    "DecodingConfig",
    "RequestOutput",
    "SamplingParams",
    "__version__",
    "build_engine",
]

_HOMES = {
    "LLM": "d3llm_trt.runtime.llm",
    "SamplingParams": "d3llm_trt.runtime.decoding.sampling_params",
    "DecodingConfig": "d3llm_trt.runtime.decoding.config",
    "RequestOutput": "d3llm_trt.runtime.outputs",
    "CompletionOutput": "d3llm_trt.runtime.outputs",
    "build_engine": "d3llm_trt.build.builder",
    "BuildConfig": "d3llm_trt.config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
