"""The ``bench`` command: how fast a model answers, with real weights or random ones of a published shape."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d3llm_trt.bench.shapes import SHAPES
from d3llm_trt.cli.options import PATH, Several
from d3llm_trt.cli.request_options import decoding_config, decoding_options
from d3llm_trt.config import QUANTIZATIONS
from d3llm_trt.dtypes import COMPUTE, torch_dtype
from d3llm_trt.engine_source import check_model
from d3llm_trt.errors import ConfigError
from d3llm_trt.gpus import check_device_name
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.runtime.stepping.policy import CUDA_GRAPHS
from d3llm_trt.settings import require

if TYPE_CHECKING:
    from d3llm_trt.bench.report import Report
    from d3llm_trt.runtime.llm import LLM


@click.command()
@click.argument("model", type=PATH, required=False)
@click.option("--shape", type=click.Choice(tuple(SHAPES)), help="Random weights of this shape instead of MODEL.")
@click.option("--layers", type=int, help="Of --shape: fewer layers than the shape has.", show_default="all")
@click.option("--input-len", type=int, default=120, help="Prompt tokens.")
@click.option("--output-len", type=int, default=256, help="Generated positions.")
@click.option("--batch-size", type=Several(int), default="1", help="Requests together; several with commas between.")
@click.option("--runs", type=int, default=5, help="Timed runs of each batch, of which the median counts.")
@click.option("--simulated-tpf", type=float, help="Commit so many tokens per pass, whatever the weights say.")
@decoding_options
@click.option("--device", help="Such as cpu or cuda:0.", show_default="a GPU if there is one")
@click.option("--dtype", type=click.Choice(COMPUTE), help="Of --shape, or of a checkpoint.")
@click.option("--quantization", type=click.Choice(QUANTIZATIONS), help="Of --shape.", show_default="none")
@click.option("--cuda-graphs", type=click.Choice(CUDA_GRAPHS), help="By default what the GPU can.")
@click.option("--breakdown", is_flag=True, help="Also where a step's time goes, by kind of kernel; needs a GPU.")
@click.option("--peers", is_flag=True, help="With --shape: also plain torch, eager and compiled; needs a GPU.")
@click.option("--plot", type=PATH, help="Write a picture of it to this .png file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(model: Path | None, shape: str | None, as_json: bool, plot: Path | None, **options: Any) -> None:
    """Time answers of MODEL, an engine or checkpoint directory, or of random weights with --shape.

    Tokens per second count every generated position. With --simulated-tpf only the acceptance test is replaced: the
    first candidates of each request count as certain, so many that the average is the given number.
    """
    _check(model, shape, options)
    decoding = decoding_config(options)
    if model is not None:
        check_model(model, dtype=options["dtype"], max_batch_size=max(options["batch_size"]))
    if options["device"] is not None:
        check_device_name(options["device"])
    from d3llm_trt.bench.report import check_picture, print_report, write_picture

    if plot is not None:
        check_picture(plot)
    report = _measure(model, shape, decoding, options)
    if plot is not None:
        write_picture(report, plot)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=1))
    else:
        print_report(report)


def _check(model: Path | None, shape: str | None, options: dict[str, Any]) -> None:
    if (model is None) == (shape is None):
        raise ConfigError("MODEL and --shape: allowed is one of the two; give a directory, or --shape llada-8b")
    for name, least in (("input_len", 1), ("output_len", 1), ("runs", 1)):
        require(options[name] >= least, f"--{name.replace('_', '-')}", options[name], f"{least} or more")
    require(all(size >= 1 for size in options["batch_size"]), "--batch-size", options["batch_size"], "1 or more each")
    rate = options["simulated_tpf"]
    require(rate is None or 1 <= rate <= options["output_len"], "--simulated-tpf", rate, "1 up to --output-len")
    require(options["layers"] is None or options["layers"] >= 1, "--layers", options["layers"], "1 or more")
    if shape is None and (options["peers"] or options["layers"]):
        raise ConfigError("--peers and --layers go with --shape; give a shape, or leave them out")
    if shape is None and options["quantization"]:
        fix = "build the engine with it, and give its directory"
        raise ConfigError(f"--quantization is {options['quantization']!r}, which goes with --shape; {fix}")


def _measure(model: Path | None, shape: str | None, decoding: DecodingConfig, options: dict[str, Any]) -> Report:
    from d3llm_trt.bench.measure import kernel_seconds, measure
    from d3llm_trt.bench.report import Report, device_name
    from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
    from d3llm_trt.runtime.loading import choose_device

    device = choose_device(options["device"])
    require(device.type == "cuda" or not (options["breakdown"] or options["peers"]), "--device", str(device), "a GPU")
    params = SamplingParams(max_tokens=options["output_len"], ignore_eos=True, decoding=decoding)
    peers = _peers(shape, options, device) if options["peers"] and shape else {}
    sizes, prompt, quantization = options["batch_size"], options["input_len"], options["quantization"]
    with _open(model, shape, options, device) as llm:
        runs = [measure(llm, size, prompt, params, options["runs"]) for size in sizes]
        kernels = {size: kernel_seconds(llm, size, prompt, params) for size in sizes if options["breakdown"]}
    return Report(
        model=str(model or f"{shape}, random weights" + (f" in {quantization}" if quantization else "")),
        device=device_name(device),
        decoding=asdict(decoding),
        simulated_tpf=options["simulated_tpf"],
        cuda_graphs=options["cuda_graphs"],
        measurements=runs,
        kernel_seconds=kernels,
        peers=peers,
    )


def _open(model: Path | None, shape: str | None, options: dict[str, Any], device: Any) -> LLM:
    from d3llm_trt.bench.random_engine import random_engine
    from d3llm_trt.bench.simulated import SimulatedAcceptance
    from d3llm_trt.runtime.engines.base import Engine
    from d3llm_trt.runtime.llm import LLM
    from d3llm_trt.runtime.loading import open_engine

    batch = max(options["batch_size"])
    engine: Engine
    if model is not None:
        engine, _ = open_engine(model, device, dtype=options["dtype"], max_batch_size=batch)
    else:
        assert shape is not None
        engine = random_engine(
            shape,
            device=device,
            dtype=torch_dtype(options["dtype"] or "bfloat16"),
            max_batch_size=batch,
            max_seq_len=options["input_len"] + options["output_len"],
            layers=options["layers"],
            quantization=options["quantization"],
        )
    if options["simulated_tpf"] is not None:
        engine = SimulatedAcceptance(engine, options["simulated_tpf"])
    return LLM.over(engine, cuda_graphs=options["cuda_graphs"])


def _peers(shape: str, options: dict[str, Any], device: Any) -> dict[str, float]:
    from d3llm_trt.bench.peers import peer_seconds
    from d3llm_trt.bench.random_engine import random_weights

    dtype = torch_dtype(options["dtype"] or "bfloat16")
    config, weights = random_weights(shape, device=device, dtype=dtype, layers=options["layers"])
    return peer_seconds(config, weights, options["input_len"] + options["output_len"], options["output_len"])
