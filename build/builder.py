"""Checkpoint -> engine directory, streamed: one packed tensor at a time is in memory.

Quantization and plans need all weights at once: they take them mapped from a file of packed weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from filelock import FileLock

from d3llm_trt.build.checkpoint import Checkpoint, open_checkpoint
from d3llm_trt.build.engine_dir import check_target, publish
from d3llm_trt.build.hub import local_directory
from d3llm_trt.build.weights_file import file_bytes, not_resident, open_weights, write_weights
from d3llm_trt.config import BuildConfig
from d3llm_trt.errors import BuildError, ConfigError, EngineError, PluginError
from d3llm_trt.files import cache_directory
from d3llm_trt.manifest import (
    FORMAT_VERSION,
    PLAN_FILE,
    WEIGHTS_FILE,
    Check,
    FileFacts,
    Manifest,
    PluginFacts,
    file_facts,
    load_manifest,
    verify_files,
    write_manifest,
)
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import TensorForm, packed_tensors
from d3llm_trt.plugins.tensorrt_plugin import find_plugin_library
from d3llm_trt.progress import OnProgress
from d3llm_trt.prompts import read_prompt_file
from d3llm_trt.tensorrt_module import load_tensorrt
from d3llm_trt.version import __version__
from d3llm_trt.workspaces import require_writable
from d3llm_trt.write_errors import FREE_SPACE, cause_and_advice, writing

SPARE_BYTES = 64 << 20
UNQUANTIZED_FILE = "unquantized.safetensors"
ELSEWHERE = "choose another directory"


def build_engine(
    checkpoint_dir: str | Path,
    engine_dir: str | Path,
    build_config: BuildConfig | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
) -> Path:
    """Build the checkpoint in ``checkpoint_dir`` into ``engine_dir`` and return that.

    Args:
        checkpoint_dir: a directory, or a model of the Hugging Face Hub as ``org/name`` or ``org/name@revision``.
        revision: a branch, tag or commit, where ``checkpoint_dir`` is a model of the Hub.
        build_config: what the engine is built for; by default ``BuildConfig()``.
        overwrite: replace an engine that is at ``engine_dir``; never anything else.
        progress: called as ``progress(stage, done, total)``.

    Raises CheckpointError, ConfigError or BuildError; ``engine_dir`` is then what it was before.
    """
    checkpoint_dir = local_directory(checkpoint_dir, revision)
    checkpoint, settings = check_build(checkpoint_dir, engine_dir, build_config, overwrite=overwrite)
    return _build(checkpoint, Path(engine_dir), settings, overwrite, progress)


def check_build(
    checkpoint_dir: str | Path,
    engine_dir: str | Path,
    build_config: BuildConfig | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Checkpoint, BuildConfig]:
    """The checkpoint and the complete settings of a build that nothing speaks against. Raises as build_engine does."""
    checkpoint = open_checkpoint(checkpoint_dir)
    settings = _resolved(checkpoint, build_config)
    _check_place(checkpoint, Path(engine_dir), settings, overwrite)
    return checkpoint, settings


def _check_place(checkpoint: Checkpoint, target: Path, settings: BuildConfig, overwrite: bool) -> None:
    """What may speak against a build besides its input: sizes of layers, the target, the disk, a missing TensorRT."""
    if settings.backend == "torch" and settings.quantization is not None:
        from d3llm_trt.build.quantize import check_sizes

        check_sizes(checkpoint.config)
    with writing(target, BuildError, ELSEWHERE):
        check_target(target, overwrite)
        require_writable(Path(os.path.realpath(target)).parent)
        _check_space(target, _engine_bytes(checkpoint.config, settings))
    if settings.backend != "torch":
        load_tensorrt(settings.backend)
    _plugin_facts(settings)


def _plugin_facts(settings: BuildConfig) -> PluginFacts | None:
    """Which build of the plugin library the plan will need, if any. Raises BuildError if it is missing."""
    if settings.tensorrt is None or settings.tensorrt.attention != "plugin":
        return None
    try:
        library = find_plugin_library()
    except PluginError as error:
        raise BuildError(f"attention is 'plugin', which needs its library: {error}; or choose native") from error
    return PluginFacts(library.version, library.sha256)


def _resolved(checkpoint: Checkpoint, build_config: BuildConfig | None) -> BuildConfig:
    settings = (build_config or BuildConfig()).resolved(checkpoint.config.max_position_embeddings, checkpoint.dtype)
    if settings.calibration_prompts is not None:
        _check_prompt_file(Path(settings.calibration_prompts))
    return settings


def _check_prompt_file(path: Path) -> None:
    """Raise ConfigError unless ``path`` holds prompts. A pipe cannot be read a second time, so it is refused."""
    try:
        regular = path.is_file()
    except OSError:  # a name that is too long
        regular = False
    if not regular:
        fix = "correct the name, or leave it out for generated prompts"
        raise ConfigError(f"calibration_prompts is {str(path)!r}; allowed: a regular file; {fix}")
    read_prompt_file(path)


def _build(
    checkpoint: Checkpoint, target: Path, settings: BuildConfig, overwrite: bool, progress: OnProgress | None
) -> Path:
    with writing(target, BuildError, ELSEWHERE):
        return publish(target, lambda path: _write(checkpoint, settings, path, progress), overwrite=overwrite)


def _engine_bytes(config: ModelConfig, settings: BuildConfig) -> int:
    """At the peak of the build: what is built from packed weights is written beside them."""
    packed = file_bytes(packed_tensors(config, settings.dtype))
    if settings.backend != "torch":
        return 2 * packed
    if settings.quantization is None:
        return packed
    return packed + file_bytes(packed_tensors(config, settings.dtype, settings.quantization))


def _check_space(target: Path, size: int) -> None:
    parent = Path(os.path.realpath(target)).parent
    while not parent.exists():
        parent = parent.parent
    free, wanted = shutil.disk_usage(parent).free, size + SPARE_BYTES
    if free < wanted:
        needs = f"the engine takes {size} bytes and some room to work"
        raise BuildError(f"{target}: {needs}, and {free} bytes are free on the disk; {FREE_SPACE}, or {ELSEWHERE}")


def _write(checkpoint: Checkpoint, settings: BuildConfig, path: Path, progress: OnProgress | None) -> None:
    from d3llm_trt.build.tokenizer import convert_tokenizer

    # The tokenizer and what needs it first: what is wrong there is found before the long work.
    files = {name: file_facts(path / name) for name in convert_tokenizer(checkpoint.path, checkpoint.config, path)}
    prompts = _prompt_facts(settings)
    canvases = _canvases(checkpoint.config, settings, path)
    if _prompt_facts(settings) != prompts:
        raise BuildError(f"{settings.calibration_prompts}: changed while it was read; build again")
    errors: dict[str, float] = {}
    if settings.backend == "torch" and settings.quantization is not None:
        files[WEIGHTS_FILE], errors = _write_quantized(checkpoint, settings, path, canvases, progress)
    else:
        files[WEIGHTS_FILE] = _write_weights(checkpoint, settings, path / WEIGHTS_FILE, progress)
    backend_version: str = str(torch.__version__)
    capabilities: tuple[str, ...] = ()
    if settings.backend != "torch":
        checkpoint.close()
        backend_version, capabilities = _write_plan(checkpoint.config, settings, path, files, canvases, progress)
    manifest = Manifest(
        model_config=checkpoint.config,
        build_config=settings,
        backend_version=backend_version,
        package_version=__version__,
        checkpoint_fingerprint=checkpoint.fingerprint,
        files=files,
        compute_capabilities=capabilities,
        plugin=_plugin_facts(settings),
        quantization_errors=errors,
        calibration_prompts=prompts,
    )
    write_manifest(path, manifest)


def _canvases(config: ModelConfig, settings: BuildConfig, path: Path) -> list[torch.Tensor]:
    """What a quantization is calibrated on."""
    if settings.quantization is None:
        return []
    from d3llm_trt.build.calibration import canvases_for

    return canvases_for(config, settings, path)


def _prompt_facts(settings: BuildConfig) -> FileFacts | None:
    return None if settings.calibration_prompts is None else file_facts(Path(settings.calibration_prompts))


def _write_weights(checkpoint: Checkpoint, settings: BuildConfig, path: Path, progress: OnProgress | None) -> FileFacts:
    checkpoint.warn_of_casts(settings.dtype)
    forms = packed_tensors(checkpoint.config, settings.dtype)
    tensors = _reported("pack weights", checkpoint.packed_tensors(), forms, progress)
    try:
        with not_resident(checkpoint.weight_files):
            return write_weights(path, forms, tensors)
    except OverflowError as error:
        fix = "choose bfloat16 or float32"
        raise BuildError(f"dtype is {settings.dtype!r}, too small a range for tensor {error}; {fix}") from error


def _write_quantized(
    checkpoint: Checkpoint,
    settings: BuildConfig,
    path: Path,
    canvases: Sequence[torch.Tensor],
    progress: OnProgress | None,
) -> tuple[FileFacts, dict[str, float]]:
    """Calibrate on unquantized weights, mapped from a file that goes away; write the others. Returns layers' errors."""
    from d3llm_trt.build.calibration import calibrate
    from d3llm_trt.build.quantize import output_errors, packed_fp8, scales_for

    config, unquantized = checkpoint.config, path / UNQUANTIZED_FILE
    _write_weights(checkpoint, settings, unquantized, progress)
    checkpoint.close()
    packed = open_weights(unquantized)
    weights = {name: packed.tensor(name) for name in config.tensor_shapes()}
    calibration = calibrate(config, weights, canvases, progress)
    scales = scales_for(config, weights, calibration)
    errors = output_errors(config, weights, scales, calibration.canvas, progress)
    forms = packed_tensors(config, settings.dtype, settings.quantization)
    tensors = _reported("quantize weights", packed_fp8(config, weights, scales), forms, progress)
    facts = write_weights(path / WEIGHTS_FILE, forms, tensors)
    unquantized.unlink()
    return facts, errors


def _write_plan(
    config: ModelConfig,
    settings: BuildConfig,
    path: Path,
    files: dict[str, FileFacts],
    canvases: Sequence[torch.Tensor],
    progress: OnProgress | None,
) -> tuple[str, tuple[str, ...]]:
    """Write the plan beside the packed weights, which stay only where it has none. Returns version and GPUs."""
    from d3llm_trt.build.tensorrt.plan import build_plan

    packed = open_weights(path / WEIGHTS_FILE)
    weights = {name: packed.tensor(name) for name in config.tensor_shapes()}
    with not_resident([packed]):
        files[PLAN_FILE] = build_plan(config, weights, settings, path / PLAN_FILE, progress, canvases)
    options = settings.tensorrt
    assert options is not None
    if not options.strip_weights:
        (path / WEIGHTS_FILE).unlink()
        del files[WEIGHTS_FILE]
    capabilities = options.compute_capabilities
    if capabilities is None:
        capabilities = (".".join(map(str, torch.cuda.get_device_capability())),) if torch.cuda.is_available() else ()
    return str(load_tensorrt(settings.backend).__version__), capabilities


def _reported(
    stage: str, tensors: Iterator[tuple[str, torch.Tensor]], forms: dict[str, TensorForm], progress: OnProgress | None
) -> Iterator[tuple[str, torch.Tensor]]:
    for done, item in enumerate(tensors, start=1):
        yield item
        if progress is not None:
            progress(stage, done, len(forms))


def build_cached_engine(
    checkpoint_dir: str | Path,
    build_config: BuildConfig | None = None,
    progress: OnProgress | None = None,
    check: Check | None = None,
) -> Path:
    """The engine for a checkpoint from the cache directory, built there if it is not there or damaged.

    Processes that ask at the same time wait for the one that builds. An engine found there is read once and compared
    with its checksums.
    """
    checkpoint = open_checkpoint(checkpoint_dir)
    settings = _resolved(checkpoint, build_config)
    if check is not None:
        check(checkpoint.config, settings)
    entry = cache_directory() / _cache_key(checkpoint, settings)
    if _is_good(entry, progress):  # without the lock, which a read-only cache cannot have
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.with_suffix(".lock")):
            if not _is_good(entry, progress):
                if entry.exists():
                    shutil.rmtree(entry)
                _check_place(checkpoint, entry, settings, overwrite=False)
                _build(checkpoint, entry, settings, False, progress)
    except OSError as error:
        fix = "set D3LLM_TRT_CACHE to a directory that can be written"
        raise BuildError(f"{entry.parent}: the cache cannot be used: {cause_and_advice(error, fix)}") from error
    return entry


def _cache_key(checkpoint: Checkpoint, settings: BuildConfig) -> str:
    from d3llm_trt.build.tokenizer import SOURCE_FILES

    # The fingerprint covers configuration and weights; the tokenizer is in the engine too.
    tokenizer = {name: file_facts(path).sha256 for name in SOURCE_FILES if (path := checkpoint.path / name).is_file()}
    prompts = _prompt_facts(settings)
    # The suffix says how the file is read.
    calibrated = None if prompts is None else (prompts.sha256, Path(settings.calibration_prompts or "").suffix)
    configured = {**settings.to_dict(), "calibration_prompts": calibrated}
    parts = [checkpoint.fingerprint, configured, tokenizer, FORMAT_VERSION, __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _is_good(entry: Path, progress: OnProgress | None) -> bool:
    if not entry.exists():
        return False
    try:
        verify_files(entry, load_manifest(entry), progress)
    except EngineError:
        return False
    return True
