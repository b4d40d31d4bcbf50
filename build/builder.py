"""Checkpoint -> engine directory, streamed: one packed tensor at a time is in memory.

Quantization and plans need all weights at once: they take them mapped from a file of packed weights.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d3llm_trt.build import calibration, tokenizer
from d3llm_trt.build.check import check_build, plugin_facts, prompt_facts
from d3llm_trt.build.checkpoint import Checkpoint
from d3llm_trt.build.engine_dir import publish, writing
from d3llm_trt.build.hub import local_directory
from d3llm_trt.build.quantize import output_errors, packed_fp8, scales_for
from d3llm_trt.build.tensorrt import plan
from d3llm_trt.build.weights_file import WeightsFile, not_resident, open_weights, write_weights
from d3llm_trt.config import BuildConfig, EngineConfig
from d3llm_trt.errors import BuildError
from d3llm_trt.gpus import capability_name
from d3llm_trt.manifest import PLAN_FILE, WEIGHTS_FILE, FileFacts, Manifest, file_facts, write_manifest
from d3llm_trt.model.packing import TensorForm, packed_tensors
from d3llm_trt.progress import OnProgress
from d3llm_trt.settings import as_config, require, require_path
from d3llm_trt.tensorrt_module import load_tensorrt
from d3llm_trt.version import __version__

_LOG = logging.getLogger(__name__)
UNQUANTIZED_FILE = "unquantized.safetensors"


def build_engine(
    checkpoint_dir: str | Path,
    engine_dir: str | Path,
    build_config: BuildConfig | Mapping[str, Any] | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
) -> Path:
    """Build the checkpoint in ``checkpoint_dir`` into ``engine_dir`` and return that.

    Args:
        checkpoint_dir: a directory, or a model of the Hugging Face Hub as ``org/name`` or ``org/name@revision``.
        revision: a branch, tag or commit, where ``checkpoint_dir`` is a model of the Hub.
        build_config: what the engine is built for, or a mapping of it; by default ``BuildConfig()``.
        overwrite: replace an engine that is at ``engine_dir``; never anything else.
        progress: called as ``progress(stage, done, total)``.

    Raises CheckpointError, ConfigError or BuildError; ``engine_dir`` is then what it was before.
    """
    require_path("checkpoint_dir", checkpoint_dir)
    require_path("engine_dir", engine_dir)
    config = as_config(BuildConfig, build_config, "build_config")
    require(isinstance(overwrite, bool), "overwrite", overwrite, "True or False")
    require(progress is None or callable(progress), "progress", progress, "None or a function")
    checkpoint_dir = local_directory(checkpoint_dir, revision)
    checkpoint, settings = check_build(checkpoint_dir, engine_dir, config, overwrite=overwrite)
    return build(checkpoint, Path(engine_dir), settings, progress, overwrite=overwrite)


def build(
    checkpoint: Checkpoint,
    target: Path,
    settings: EngineConfig,
    progress: OnProgress | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """A build that was checked. Raises BuildError."""
    with writing(target):
        path = publish(target, lambda path: _Build(checkpoint, settings, path, progress).write(), overwrite=overwrite)
    _LOG.info("built the engine %s from %s", path, checkpoint.path)
    return path


@dataclass(frozen=True)
class _Build:
    """One engine in the making, in the directory ``path`` that nobody sees yet."""

    checkpoint: Checkpoint
    settings: EngineConfig
    path: Path
    progress: OnProgress | None

    def write(self) -> None:
        """Write all files, the manifest last."""
        checkpoint, settings, path = self.checkpoint, self.settings, self.path
        names = tokenizer.convert_tokenizer(checkpoint.path, checkpoint.config, path)
        # The tokenizer and what needs it first: what is wrong there is found before the long work.
        files = {name: file_facts(path / name) for name in names}
        prompts = prompt_facts(settings)
        canvases = calibration.canvases_for(checkpoint.config, settings, path)
        if prompt_facts(settings) != prompts:
            raise BuildError(f"{settings.calibration_prompts}: changed while it was read; build again")
        backend_version, capabilities, errors = str(torch.__version__), tuple[str, ...](), dict[str, float]()
        if settings.backend != "torch":
            files |= self._write_plan(canvases)
            backend_version, capabilities = str(load_tensorrt(settings.backend).__version__), self._capabilities()
        elif settings.quantization is not None:
            files[WEIGHTS_FILE], errors = self._write_quantized(canvases)
        else:
            files[WEIGHTS_FILE] = self._write_weights(path / WEIGHTS_FILE)
        manifest = Manifest(
            model_config=checkpoint.config,
            build_config=settings,
            backend_version=backend_version,
            package_version=__version__,
            checkpoint_fingerprint=checkpoint.fingerprint,
            files=files,
            compute_capabilities=capabilities,
            plugin=plugin_facts(settings),
            quantization_errors=errors,
            calibration_prompts=prompts,
        )
        write_manifest(path, manifest)

    def _write_weights(self, path: Path) -> FileFacts:
        dtype = self.settings.dtype
        self.checkpoint.warn_of_casts(dtype)
        forms = packed_tensors(self.checkpoint.config, dtype)
        tensors = self._reported("pack weights", self.checkpoint.packed_tensors(), forms)
        try:
            with not_resident(self.checkpoint.weight_files):
                return write_weights(path, forms, tensors)
        except OverflowError as error:
            fix = "choose bfloat16 or float32"
            raise BuildError(f"dtype is {dtype!r}, too small a range for tensor {error}; {fix}") from error

    def _mapped(self, path: Path) -> tuple[WeightsFile, dict[str, Tensor]]:
        """The unquantized weights in the file ``path``; the checkpoint is not needed any more."""
        self.checkpoint.close()
        packed = open_weights(path)
        return packed, {name: packed.tensor(name) for name in self.checkpoint.config.tensor_shapes()}

    def _write_quantized(self, canvases: Sequence[Tensor]) -> tuple[FileFacts, dict[str, float]]:
        """Calibrate on unquantized weights, from a file that goes away; write the others. Returns layers' errors."""
        config, settings, unquantized = self.checkpoint.config, self.settings, self.path / UNQUANTIZED_FILE
        self._write_weights(unquantized)
        _, weights = self._mapped(unquantized)
        inputs = calibration.calibrate(config, weights, canvases, self.progress)
        scales = scales_for(config, weights, inputs)
        errors = output_errors(config, weights, scales, inputs.canvas, self.progress)
        forms = packed_tensors(config, settings.dtype, settings.quantization)
        tensors = self._reported("quantize weights", packed_fp8(config, weights, scales), forms)
        facts = write_weights(self.path / WEIGHTS_FILE, forms, tensors)
        unquantized.unlink()
        return facts, errors

    def _write_plan(self, canvases: Sequence[Tensor]) -> dict[str, FileFacts]:
        """The plan, and beside it the packed weights where it has none."""
        config, path, kept = self.checkpoint.config, self.path / PLAN_FILE, self.path / WEIGHTS_FILE
        facts = {WEIGHTS_FILE: self._write_weights(kept)}
        packed, weights = self._mapped(kept)
        with not_resident([packed]):
            facts[PLAN_FILE] = plan.build_plan(config, weights, self.settings, path, self.progress, canvases)
        if not self.settings.plan.strip_weights:
            kept.unlink()
            del facts[WEIGHTS_FILE]
        return facts

    def _capabilities(self) -> tuple[str, ...]:
        """The GPUs of a plan: those that were named, or the one on which it was built."""
        if (listed := self.settings.plan.compute_capabilities) is not None:
            return listed
        return (capability_name(torch.cuda.get_device_capability()),) if torch.cuda.is_available() else ()

    def _reported(
        self, stage: str, tensors: Iterator[tuple[str, Tensor]], forms: Mapping[str, TensorForm]
    ) -> Iterator[tuple[str, Tensor]]:
        for done, item in enumerate(tensors, start=1):
            yield item
            if self.progress is not None:
                self.progress(stage, done, len(forms))
