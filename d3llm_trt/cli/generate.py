"""The ``generate`` command: prompts in, answers out, each on its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import d3llm_trt
from d3llm_trt.cli.options import BAD_INPUT, PATH, REVISION, SOME_FAILED, Command
from d3llm_trt.config import BACKENDS, DTYPES
from d3llm_trt.errors import ConfigError, RequestError
from d3llm_trt.prompts import Prompt, as_chat, read_prompts
from d3llm_trt.runtime.decoding.config import ALGORITHMS, DecodingConfig
from d3llm_trt.runtime.stepping.policy import CUDA_GRAPHS

if TYPE_CHECKING:
    from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
    from d3llm_trt.runtime.llm import LLM
    from d3llm_trt.runtime.outputs import RequestOutput


def _threshold(value: str) -> float | str:
    """A number, ``auto``, or the text ``none``: None itself would mean that the option was not given."""
    if value in ("auto", "none"):
        return value
    try:
        return float(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a number of nats, auto or none") from error


def decoding_options(command: Command) -> Command:
    """The options that set a DecodingConfig, each named like its field."""
    kinds: dict[str, Any] = {
        "algorithm": click.Choice(ALGORITHMS), "block_size": int, "threshold": _threshold,
        "block_add_threshold": float, "decoded_token_threshold": float, "cache_delay_iter": int,
        "refresh_interval": int, "steps": int,
    }  # fmt: skip
    helps = {
        "algorithm": "Which unmasking algorithm decodes.",
        "block_size": "Generated positions per block.",
        "threshold": "Entropy in nats below which a token is committed.",
        "block_add_threshold": "Decoded share of a block that opens the next block.",
        "decoded_token_threshold": "Decoded share of a block that fully activates the next block.",
        "cache_delay_iter": "MultiBlock: passes before a finished block's keys and values are reused.",
        "refresh_interval": "MultiBlock with cache: a full pass every so many passes.",
        "steps": "LowConfidence: passes for the whole answer.",
    }
    defaults = DecodingConfig()
    for name in reversed(kinds):
        flag, default = "--" + name.replace("_", "-"), getattr(defaults, name)
        text = f"{helps[name]}  [default: {'off' if default is None else default}]"
        metavar = "NATS|auto|none" if name == "threshold" else None
        option = click.option(flag, type=kinds[name], default=None, show_default=False, metavar=metavar, help=text)
        command = option(command)
    return command


@click.command()
@click.argument("model", type=PATH)
@click.argument("prompt", nargs=-1)
@REVISION
@click.option(
    "--file", "-f", type=PATH, help='One prompt per line; in a .jsonl, {"prompt"|"messages"|"prompt_token_ids"}.'
)
@click.option("--chat/--raw", default=None, help="Wrap text as a user's message.", show_default="chat if possible")
@click.option("--system", metavar="TEXT", help="System message of every chat.")
@click.option("--max-tokens", type=int, default=256, help="Positions to generate.")
@click.option("--temperature", type=float, default=0.0, help="0 takes the most likely tokens.")
@click.option("--seed", type=int, default=0, help="Of the sampling at temperatures above 0.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.")
@click.option("--ignore-eos", is_flag=True, help="Return all positions.")
@click.option("--end-id", type=int, help="Token id that ends an answer.", show_default="the checkpoint's")
@click.option("--decoding", type=PATH, help="YAML or JSON file of decoding settings; the options below override it.")
@decoding_options
@click.option("--no-early-stop", is_flag=True, help="Keep decoding behind the first end token.")
@click.option("--backend", type=click.Choice(BACKENDS), help="How the engine is run.", show_default="the engine's")
@click.option("--device", help="Such as cpu or cuda:0.", show_default="a GPU if there is one")
@click.option("--dtype", type=click.Choice(DTYPES), help="When MODEL is a checkpoint.", show_default="auto")
@click.option("--max-batch-size", type=int, help="Requests decoded together.", show_default="the engine's")
@click.option(
    "--cuda-graphs", type=click.Choice(CUDA_GRAPHS), help="Steps to capture.", show_default="what the GPU can"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per request.")
@click.option("--watch", is_flag=True, help="Show the answer being unmasked; one prompt only.")
@click.option("--trace", type=PATH, help="Write a .png or .html of when each token was committed; one prompt only.")
def generate(
    model: Path,
    prompt: tuple[str, ...],
    file: Path | None,
    trace: Path | None,
    watch: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Answer PROMPTs with MODEL, an engine or checkpoint directory, or ORG/NAME[@REVISION] on the Hub.

    PROMPT - is standard input, which is also read when there is neither PROMPT nor --file. Answers go to standard
    output, their statistics to standard error. Exit code 1: some requests failed; 2: bad input.
    """
    params = _sampling_params(options)
    _check_trace_path(trace)
    if options["system"] is not None and options["chat"] is False:
        raise ConfigError("--system needs a chat; leave out --raw")
    prompts = read_prompts(prompt, file, sys.stdin.buffer if sys.stdin else None)
    if (watch or trace) and len(prompts) != 1:
        raise ConfigError(f"--watch and --trace take one prompt, but {len(prompts)} are given; give one prompt")
    with _open(model, options) as llm:
        prompts = _with_chat(llm, prompts, options["chat"], options["system"])
        outputs = []
        results = _watch(llm, prompts, params) if watch else _generate(llm, prompts, params)
        for index, output in enumerate(results):
            outputs.append(output)
            _print_output(index, output, as_json)
        if trace and outputs[0].error is None:
            _write_trace(llm, outputs[0], trace)
    return _exit_code(outputs)


def _check_trace_path(path: Path | None) -> None:
    if path is not None:
        from d3llm_trt.cli.trace import check_trace_path

        check_trace_path(path)


def _sampling_params(options: dict[str, Any]) -> SamplingParams:
    from d3llm_trt.runtime.decoding.sampling_params import SamplingParams

    names = ("max_tokens", "temperature", "seed", "ignore_eos", "end_id")
    stop = options["stop"] or None
    return SamplingParams(**{name: options[name] for name in names}, stop=stop, decoding=decoding_config(options))


def decoding_config(options: dict[str, Any]) -> DecodingConfig:
    """The settings file's configuration, or the default one, with the given options on top."""
    file = options["decoding"]
    config = DecodingConfig.from_file(file) if file else DecodingConfig()
    names = [field.name for field in fields(DecodingConfig)]
    changes = {name: options[name] for name in names if options.get(name) is not None}
    if changes.get("threshold") == "none":
        changes["threshold"] = None
    if options.get("no_early_stop"):
        changes["early_stop"] = False
    return config.with_changes(**changes)


def _open(model: Path, options: dict[str, Any]) -> LLM:
    from d3llm_trt.engine_source import source_directory
    from d3llm_trt.progress import build_progress

    source = source_directory(model, options["revision"])  # before our bars, since a download has its own
    names = ("backend", "device", "dtype", "max_batch_size", "cuda_graphs")
    with build_progress() as progress:
        return d3llm_trt.LLM(source, **{name: options[name] for name in names}, progress=progress)


def _with_chat(llm: LLM, prompts: list[Prompt], chat: bool | None, system: str | None) -> list[Prompt]:
    can_chat = llm.tokenizer is not None and llm.tokenizer.has_chat_template
    if (chat or system is not None) and not can_chat:
        option = "--chat" if chat else "--system"
        raise RequestError(f"{option} needs a tokenizer with chat tokens, which this model lacks; leave out {option}")
    if chat is None:
        chat = can_chat
    return [as_chat(prompt, system) if chat else prompt for prompt in prompts]


def _generate(llm: LLM, prompts: list[Prompt], params: SamplingParams) -> Iterable[RequestOutput]:
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    return llm.generate(prompts, params, use_tqdm=len(prompts) > 1 and on_terminal)


def _watch(llm: LLM, prompts: list[Prompt], params: SamplingParams) -> Iterator[RequestOutput]:
    from d3llm_trt.cli.watch import watch

    def show(token_id: int) -> str:
        return f"{token_id} " if llm.tokenizer is None else llm.tokenizer.decode([token_id])

    yield watch(llm.generate_stream(prompts[0], params, canvas=True), show, sys.stderr)


def _write_trace(llm: LLM, output: RequestOutput, path: Path) -> None:
    from d3llm_trt.cli.trace import write_trace

    ids = output.outputs[0].token_ids
    write_trace(output, [str(i) for i in ids] if llm.tokenizer is None else llm.tokenizer.pieces(ids), path)


def _print_output(index: int, output: RequestOutput, as_json: bool) -> None:
    metrics = output.metrics
    if as_json:
        text = json.dumps(_as_dict(index, output), ensure_ascii=False)
        click.echo(text.encode("utf-8", "backslashreplace").decode())  # lone surrogates become JSON escapes
    elif output.error is None:
        click.echo(output.outputs[0].text or " ".join(map(str, output.outputs[0].token_ids)))
    if output.error is not None:
        click.echo(f"error: prompt {index + 1}: " + " ".join(str(output.error).split()), err=True)
    elif not as_json:
        tokens = len(output.outputs[0].token_ids)
        line = f"{metrics.num_forward_passes} forward passes, {tokens} tokens, {metrics.tokens_per_forward:.2f} TPF"
        click.secho(f"{line}, {metrics.latency:.2f} s", err=True, dim=True)


def _as_dict(index: int, output: RequestOutput) -> dict[str, Any]:
    answer = asdict(output.outputs[0]) if output.outputs else {}
    return {
        "index": index,
        "request_id": output.request_id,
        "prompt": output.prompt,
        "prompt_token_ids": output.prompt_token_ids,
        **{name: value for name, value in answer.items() if name != "index"},
        "metrics": asdict(output.metrics),
        "error": None if output.error is None else str(output.error),
    }


def _exit_code(outputs: list[RequestOutput]) -> int:
    errors = [output.error for output in outputs if output.error is not None]
    if errors and len(errors) == len(outputs) and all(isinstance(e, (RequestError, ConfigError)) for e in errors):
        return BAD_INPUT
    return SOME_FAILED if errors else 0
