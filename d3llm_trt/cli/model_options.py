"""The model that a command runs: its options, what can be checked before anything heavy is loaded, and opening it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import d3llm_trt
from d3llm_trt.cli.options import REVISION, Command
from d3llm_trt.config import BACKENDS, DTYPES
from d3llm_trt.engine_source import check_model, source_directory
from d3llm_trt.errors import RequestError
from d3llm_trt.gpus import check_device_name
from d3llm_trt.runtime.stepping.policy import CUDA_GRAPHS

if TYPE_CHECKING:
    from d3llm_trt.runtime.llm import LLM

_OPTIONS = (
    REVISION,
    click.option("--backend", type=click.Choice(BACKENDS), help="How the engine is run.", show_default="the engine's"),
    click.option("--device", help="Such as cpu or cuda:0.", show_default="a GPU if there is one"),
    click.option("--dtype", type=click.Choice(DTYPES), help="When MODEL is a checkpoint.", show_default="auto"),
    click.option("--max-batch-size", type=int, help="Requests decoded together.", show_default="the engine's"),
    click.option(
        "--cuda-graphs", type=click.Choice(CUDA_GRAPHS), help="Steps to capture.", show_default="what the GPU can"
    ),
)


def model_options(command: Command) -> Command:
    """The options of :func:`open_model`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_model(model: Path, options: Mapping[str, Any]) -> LLM:
    """The LLM that a command line names. What is wrong with it is found before torch is imported, where it can be."""
    from d3llm_trt.progress import build_progress

    if options["device"] is not None:
        check_device_name(options["device"])
    source = source_directory(model, options["revision"])  # before our bars, since a download has its own
    of_engine = {name: options[name] for name in ("backend", "dtype", "max_batch_size")}
    check_model(source, **of_engine)
    with build_progress() as progress:
        others = {name: options[name] for name in ("device", "cuda_graphs")}
        return d3llm_trt.LLM(source, **of_engine, **others, progress=progress)


def token_text(llm: LLM) -> Callable[[int], str]:
    """What shows one token id as text: by itself, or its number where the model has no tokenizer."""
    return lambda token_id: f"{token_id} " if llm.tokenizer is None else llm.tokenizer.decode([token_id])


def chat_form(llm: LLM, chat: bool | None, system: str | None) -> bool:
    """Whether texts become chats: as ``chat`` says, or if the model can. Raises RequestError if it cannot."""
    if (chat or system is not None) and not can_chat(llm):
        option = "--chat" if chat else "--system"
        raise RequestError(f"{option} needs a tokenizer with chat tokens, which this model lacks; leave out {option}")
    return can_chat(llm) if chat is None else chat


def can_chat(llm: LLM) -> bool:
    """Whether the model has a tokenizer with the tokens of its family's chats."""
    return llm.tokenizer is not None and llm.tokenizer.has_chat_template
