"""The ``build`` command: a checkpoint in, an engine directory out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from d3llm_trt.build.checkpoint_config import GIVE_CHECKPOINT
from d3llm_trt.cli.options import PATH, REVISION, Several, chosen, config_options
from d3llm_trt.config import ATTENTIONS, BACKENDS, DTYPES, MASKS, QUANTIZATIONS, BuildConfig, TensorRTConfig
from d3llm_trt.engine_source import source_directory
from d3llm_trt.errors import CheckpointError
from d3llm_trt.files import require_directory

BUILD_OPTIONS = config_options(
    BuildConfig,
    backend={"type": click.Choice(BACKENDS)},
    dtype={"type": click.Choice(DTYPES)},
    quantization={"type": click.Choice(QUANTIZATIONS)},
    calibration_prompts={"type": PATH},
)
TENSORRT_OPTIONS = config_options(
    TensorRTConfig,
    prefix="TensorRT: ",
    unset="by the backend",
    attention={"type": click.Choice(ATTENTIONS)},
    attention_mask={"type": click.Choice(MASKS)},
    token_buckets={"type": Several(int)},
    compute_capabilities={"type": Several(str)},
)


@click.command()
@click.argument("checkpoint", type=PATH)
@REVISION
@click.option("--output", "-o", type=PATH, required=True, help="Engine directory to write.")
@BUILD_OPTIONS
@TENSORRT_OPTIONS
@click.option("--overwrite", is_flag=True, help="Replace an engine that is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def build(
    checkpoint: Path, revision: str | None, output: Path, overwrite: bool, as_json: bool, **settings: Any
) -> None:
    """Turn the d3LLM CHECKPOINT, a directory or ORG/NAME[@REVISION] on the Hub, into an engine directory."""
    config = _config(settings)
    checkpoint = source_directory(checkpoint, revision)
    require_directory(checkpoint, CheckpointError, GIVE_CHECKPOINT)  # before torch is imported
    from d3llm_trt.build import builder
    from d3llm_trt.build.check import check_build
    from d3llm_trt.capacity import estimate
    from d3llm_trt.cli.inspect import engine_facts, print_facts
    from d3llm_trt.progress import build_progress

    opened, complete = check_build(checkpoint, output, config, overwrite=overwrite)
    click.secho(estimate(opened.config, complete).line(), err=True, dim=True)
    with build_progress() as progress:
        path = builder.build(opened, output, complete, progress, overwrite=overwrite)
    print_facts(engine_facts(path), as_json)


def _config(settings: dict[str, Any]) -> BuildConfig:
    """TensorRT's options only where there are any, so that the torch backend can refuse them."""
    options = chosen(TensorRTConfig, settings)
    return BuildConfig(**chosen(BuildConfig, settings), tensorrt=TensorRTConfig(**options) if options else None)
