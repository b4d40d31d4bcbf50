"""What an engine or a checkpoint directory holds, as plain facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from d3llm_trt.capacity import shown_bytes
from d3llm_trt.cli.streams import write_json
from d3llm_trt.dtypes import DTYPES
from d3llm_trt.engine_source import GIVE_EITHER
from d3llm_trt.errors import EngineError
from d3llm_trt.files import require_directory
from d3llm_trt.manifest import Manifest, is_engine, load_manifest, verify_files
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.tokenizer_files import TOKENIZER_FILE

Facts = dict[str, Any]
BYTE_FACTS = ("size", "kv_bytes_per_token")


def inspect_path(path: Path, verify: bool) -> Facts:
    """Facts of the directory ``path``. Raises EngineError or CheckpointError if it is neither kind or damaged."""
    require_directory(path, EngineError, GIVE_EITHER)
    if is_engine(path):
        return engine_facts(path, verify)
    if verify:
        raise EngineError(f"{path}: --verify needs an engine directory, which has checksums; leave out --verify")
    return checkpoint_facts(path)


def engine_facts(path: Path, verify: bool = False) -> Facts:
    """Facts from an engine's manifest; with ``verify``, every file is read and compared with its checksum."""
    manifest = load_manifest(path)
    if verify:
        verify_files(path, manifest)
    build, model = manifest.build_config, manifest.model_config
    return {
        "kind": "engine",
        "path": str(path),
        "backend": build.backend,
        "format_version": manifest.format_version,
        **model_facts(model, build.dtype),
        "max_batch_size": build.max_batch_size,
        "max_seq_len": build.max_seq_len,
        "max_num_tokens": build.max_num_tokens,
        **(plan_facts(manifest) if build.tensorrt is not None else {}),
        **_quantization_facts(manifest),
        "tokenizer": (path / TOKENIZER_FILE).is_file(),
        "size": _size(path),
        "files": sorted(manifest.files),
        "verified": verify,
    }


def _quantization_facts(manifest: Manifest) -> Facts:
    """The precision of linear layers, and for packed weights the layer whose output it changes most."""
    build, errors = manifest.build_config, manifest.quantization_errors
    if build.quantization is None:
        return {}
    prompts = build.calibration_prompts or "generated prompts"
    facts: Facts = {"quantization": build.quantization, "calibrated_on": prompts}
    if errors:
        worst = max(errors, key=errors.__getitem__)
        facts |= {"largest_quantization_error": round(errors[worst], 5), "layer_of_largest_error": worst}
    return facts


def plan_facts(manifest: Manifest) -> Facts:
    """What a plan was built for, from the manifest."""
    build, options = manifest.build_config, manifest.build_config.plan
    batches = 1 if options.attention == "plugin" or build.max_batch_size == 1 else 2
    return {
        "tensorrt_version": manifest.backend_version,
        "compute_capabilities": list(manifest.compute_capabilities),
        "quantization": "none",
        "attention": options.attention,
        "attention_mask": options.attention_mask if options.attention == "native" else "none",
        "token_buckets": list(options.token_buckets),
        "optimization_profiles": batches * len(options.token_buckets),
        "weights_in_plan": not options.strip_weights,
    }


def layer_facts(path: Path) -> list[Facts]:
    """Every layer of an engine's plan, as TensorRT's inspector describes it. Raises EngineError without a GPU."""
    from d3llm_trt.runtime.engines.tensorrt_session import open_plan, plan_layers
    from d3llm_trt.runtime.loading import choose_device
    from d3llm_trt.tensorrt_module import load_tensorrt

    manifest = load_manifest(path)
    device = choose_device(None)
    if manifest.build_config.tensorrt is None or device.type != "cuda":
        raise EngineError(f"{path}: --layers needs a plan, and an NVIDIA GPU to load it on; leave out --layers")
    trt = load_tensorrt(manifest.backend)
    return plan_layers(trt, open_plan(trt, path, manifest, device))


def checkpoint_facts(path: Path) -> Facts:
    """Facts from a checkpoint's configuration and headers; weights are not read."""
    from d3llm_trt.build.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path)
    return {
        "kind": "checkpoint",
        "path": str(path),
        **model_facts(checkpoint.config, checkpoint.dtype),
        "tokenizer": any((path / name).is_file() for name in (TOKENIZER_FILE, "vocab.json")),
        "size": _size(path),
    }


def model_facts(config: ModelConfig, dtype: str) -> Facts:
    """A model's hyper-parameters, and its sizes when it runs in ``dtype``."""
    facts = config.to_dict()
    family = {"family": facts.pop("family"), "dtype": dtype, "parameters": config.num_parameters}
    kv_bytes = config.kv_values_per_token * DTYPES[dtype].num_bytes
    return {**family, "kv_bytes_per_token": kv_bytes, **facts, "end_token_ids": list(config.end_token_ids)}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def print_facts(facts: Facts, as_json: bool) -> None:
    """One JSON object, or a line per fact."""
    if as_json:
        write_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):{width}}  {_shown(name, value)}")


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if name in BYTE_FACTS:
        return shown_bytes(value)
    return f"{value:,}" if name == "parameters" else str(value)
