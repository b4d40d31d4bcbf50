"""The ``triton`` command: an engine directory in, a Triton model repository out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from d3llm_trt.cli.options import PATH, Several, chosen, config_options
from d3llm_trt.serving.triton.repository import RepositoryOptions, write_repository


@click.command()
@click.argument("engine", type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="Model repository to write into.")
@config_options(RepositoryOptions, unset="the CPU", gpus={"type": Several(int)})
@click.option("--overwrite", is_flag=True, help="Replace a model of this name that was written before.")
@click.option("--validate", is_flag=True, help="Start tritonserver on loopback, send one request, and report.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def triton(engine: Path, output: Path, overwrite: bool, validate: bool, as_json: bool, **settings: Any) -> None:
    """Write the ENGINE directory into a Triton model repository."""
    from d3llm_trt.serving.triton.validation import find_server, validate_repository

    if validate:
        find_server()
    options = RepositoryOptions(**chosen(RepositoryOptions, settings))
    model = write_repository(engine, output, options, overwrite=overwrite)
    facts = {"model": str(model), "name": options.name, "instances": options.instances, "gpus": list(options.gpus)}
    if validate:
        facts |= validate_repository(output, options.name)
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"wrote {model}")
    if validate:
        click.echo(f"the server answered in {facts['seconds']:.2f} s: {facts['answer']}")
    click.echo(f"serve it: tritonserver --model-repository {output}")
