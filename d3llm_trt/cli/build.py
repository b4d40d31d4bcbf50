"""The ``build`` command: a checkpoint in, an engine directory out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

import d3llm_trt
from d3llm_trt.build.checkpoint_config import GIVE_CHECKPOINT
from d3llm_trt.cli.options import PATH, REVISION, Command, Several
from d3llm_trt.config import ATTENTIONS, BACKENDS, DTYPES, MASKS, QUANTIZATIONS, BuildConfig, TensorRTConfig
from d3llm_trt.engine_source import source_directory
from d3llm_trt.errors import CheckpointError
from d3llm_trt.files import require_directory


def tensorrt_options(command: Command) -> Command:
    """The options that set a TensorRTConfig, each named like its field."""
    kinds: dict[str, tuple[Any, str]] = {
        "attention": (click.Choice(ATTENTIONS), "TensorRT's own on padded windows, or our plugin on packed ones."),
        "attention_mask": (click.Choice(MASKS), "How native attention hides what is behind a window."),
        "token_buckets": (Several(int), "Sizes with an optimization profile each, as in 128,512."),
        "compute_capabilities": (Several(str), "GPUs of a tensorrt-rtx plan, as in 8.9,12.0."),
        "optimization_level": (int, "0 (fast build) to 5 (fast plan)."),
        "workspace_gib": (float, "Most scratch memory of a layer."),
        "version_compatible": (bool, "The plan also runs on newer TensorRT versions."),
        "hardware_compatible": (bool, "The plan also runs on other GPUs, from Ampere on."),
        "weight_streaming": (bool, "Weights may stay on the host at run time."),
        "strip_weights": (bool, "Leave the weights out of the plan and refit them at load."),
        "timing_cache": (str, "File that remembers measured kernels between builds."),
    }
    defaults = TensorRTConfig()
    for name in reversed(kinds):
        kind, text = kinds[name]
        default, is_flag = getattr(defaults, name), kind is bool
        shown = "" if is_flag else f"  [default: {default or 'by the backend'}]"
        flag = "--" + name.replace("_", "-")
        form: dict[str, Any] = {"is_flag": True} if is_flag else {"type": kind}
        command = click.option(flag, default=None, show_default=False, help=f"TensorRT: {text}{shown}", **form)(command)
    return command


@click.command()
@click.argument("checkpoint", type=PATH)
@REVISION
@click.option("--output", "-o", type=PATH, required=True, help="Engine directory to write.")
@click.option("--backend", type=click.Choice(BACKENDS), default="torch", help="How the network is compiled.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", help="Of weights; auto keeps the checkpoint's.")
@click.option(
    "--quantization",
    type=click.Choice(QUANTIZATIONS),
    help="Of linear layers, weights and inputs, all but the LM head; needs compute capability 8.9 on a GPU.",
    show_default="none",
)
@click.option(
    "--calibration-prompts",
    type=PATH,
    help="Prompts whose unmasking sets the scales of fp8, a file as for generate --file.",
    show_default="generated ones",
)
@click.option("--max-batch-size", type=int, default=8, help="Requests decoded together.")
@click.option(
    "--max-seq-len", type=int, show_default="the model's limit, at most 2048", help="Prompt plus answer of one request."
)
@click.option(
    "--max-num-tokens", type=int, show_default="max-batch-size * max-seq-len", help="Rows of one forward pass."
)
@tensorrt_options
@click.option("--overwrite", is_flag=True, help="Replace an engine that is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def build(
    checkpoint: Path, revision: str | None, output: Path, overwrite: bool, as_json: bool, **settings: Any
) -> None:
    """Turn the d3LLM CHECKPOINT, a directory or ORG/NAME[@REVISION] on the Hub, into an engine directory."""
    config = _config(settings)
    checkpoint = source_directory(checkpoint, revision)
    require_directory(checkpoint, CheckpointError, GIVE_CHECKPOINT)  # before torch is imported
    from d3llm_trt.build.check import check_build
    from d3llm_trt.capacity import estimate
    from d3llm_trt.cli.inspect import engine_facts, print_facts
    from d3llm_trt.progress import build_progress

    opened, complete = check_build(checkpoint, output, config, overwrite=overwrite)
    click.secho(estimate(opened.config, complete).line(), err=True, dim=True)
    with build_progress() as progress:
        path = d3llm_trt.build_engine(checkpoint, output, config, overwrite=overwrite, progress=progress)
    print_facts(engine_facts(path), as_json)


def _config(settings: dict[str, Any]) -> BuildConfig:
    """TensorRT's options only where one was given, so that the torch backend can refuse them."""
    own = [field.name for field in fields(TensorRTConfig)]
    given = {name: value for name in own if (value := settings.pop(name)) not in (None, False)}
    return BuildConfig(**settings, tensorrt=TensorRTConfig(**given) if given else None)
