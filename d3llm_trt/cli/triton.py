"""The ``triton`` command: an engine directory in, a Triton model repository out."""

from __future__ import annotations

import json
from pathlib import Path

import click

from d3llm_trt.cli.options import PATH, Several


@click.command()
@click.argument("engine", type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="Model repository to write into.")
@click.option("--name", default="d3llm", help="Of the model.")
@click.option("--instances", type=int, default=1, help="Engines per device, each with a batch of its own.")
@click.option("--gpus", type=Several(int), default=(), show_default="the CPU", help="Devices, as in 0,1.")
@click.option("--max-queue-size", type=int, default=256, help="Requests that may wait per instance.")
@click.option(
    "--exit-on-crash/--no-exit-on-crash",
    default=True,
    help="End the server when the model's process dies, so that no client waits for ever.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model of this name that was written before.")
@click.option("--validate", is_flag=True, help="Start tritonserver on loopback, send one request, and report.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def triton(
    engine: Path,
    output: Path,
    name: str,
    instances: int,
    gpus: tuple[int, ...],
    max_queue_size: int,
    exit_on_crash: bool,
    overwrite: bool,
    validate: bool,
    as_json: bool,
) -> None:
    """Write the ENGINE directory into a Triton model repository."""
    from d3llm_trt.serving.triton.repository import RepositoryOptions, write_repository
    from d3llm_trt.serving.triton.validation import find_server, validate_repository

    if validate:
        find_server()
    options = RepositoryOptions(name, instances, gpus, max_queue_size, exit_on_crash)
    model = write_repository(engine, output, options, overwrite=overwrite)
    facts = {"model": str(model), "name": name, "instances": instances, "gpus": list(gpus)}
    if validate:
        facts |= validate_repository(output, name)
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"wrote {model}")
    if validate:
        click.echo(f"the server answered in {facts['seconds']:.2f} s: {facts['answer']}")
    click.echo(f"serve it: tritonserver --model-repository {output}")
