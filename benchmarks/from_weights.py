"""Packed weights in memory -> engine directory, for those that no checkpoint holds, such as random ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from d3llm_trt.build.engine_dir import publish, writing
from d3llm_trt.build.weights_file import is_finite, write_weights
from d3llm_trt.config import BuildConfig, EngineConfig
from d3llm_trt.dtypes import HALF, dtype_name
from d3llm_trt.errors import BuildError
from d3llm_trt.manifest import WEIGHTS_FILE, Manifest, write_manifest
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import TensorForm, packed_tensors
from d3llm_trt.settings import require
from d3llm_trt.version import __version__


def write_engine(
    engine_dir: str | Path, config: ModelConfig, weights: Mapping[str, Tensor], build_config: BuildConfig | None = None
) -> Path:
    """Write a torch engine into ``engine_dir`` and return that. It has no tokenizer: it takes and gives token ids.

    Args:
        weights: by name, on any device: those of :func:`packed_tensors` for the settings' dtype and quantization.
        build_config: what the engine is for; the dtype is by default that of the embedding.

    Raises ConfigError or BuildError; ``engine_dir`` is then what it was before.
    """
    settings = _settings(config, weights, build_config or BuildConfig())
    _check(packed_tensors(config, settings.dtype, settings.quantization), weights, settings.dtype)
    target = Path(engine_dir)
    with writing(target):
        return publish(target, lambda path: _write(path, config, weights, settings))


def _settings(config: ModelConfig, weights: Mapping[str, Tensor], asked: BuildConfig) -> EngineConfig:
    require(asked.backend == "torch", "backend", asked.backend, "torch for an engine that is only weights")
    prompts = asked.calibration_prompts
    require(prompts is None, "calibration_prompts", prompts, "None: the weights come with their scales")
    dtype = dtype_name(weights["embedding.weight"].dtype) if "embedding.weight" in weights else HALF[0]
    return asked.resolved(config.max_position_embeddings, dtype)


def _check(forms: Mapping[str, TensorForm], weights: Mapping[str, Tensor], dtype: str) -> None:
    if different := sorted(forms.keys() ^ weights.keys()):
        raise BuildError(f"tensor {different[0]} is missing, or not part of a {dtype} network")
    for name, form in forms.items():
        found = TensorForm(tuple(weights[name].shape), dtype_name(weights[name].dtype))
        if found != form:
            wanted = f"{form.dtype} {[*form.shape]}"
            raise BuildError(f"tensor {name} is {found.dtype} {[*found.shape]}; allowed: {wanted}")
        if not is_finite(weights[name]):
            raise BuildError(f"tensor {name} has values that are not finite; allowed: finite ones")
        if name.endswith("_scale") and not weights[name] > 0:
            raise BuildError(f"tensor {name} is {float(weights[name]):g}; allowed: above 0")


def _write(path: Path, config: ModelConfig, weights: Mapping[str, Tensor], settings: EngineConfig) -> None:
    forms = packed_tensors(config, settings.dtype, settings.quantization)
    # One at a time, so that weights on a GPU are never in the host's memory together.
    facts = write_weights(path / WEIGHTS_FILE, forms, ((name, weights[name].cpu()) for name in forms))
    manifest = Manifest(
        model_config=config,
        build_config=settings,
        backend_version=str(torch.__version__),
        package_version=__version__,
        checkpoint_fingerprint=facts.sha256,
        files={WEIGHTS_FILE: facts},
    )
    write_manifest(path, manifest)
