"""The ``generate`` command: prompts in, answers out, each on its own."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d3llm_trt.cli.answers import answer_row, answer_text, num_tokens, statistics
from d3llm_trt.cli.answers_file import AnswersFile, opened_answers
from d3llm_trt.cli.batch import Asker, Question, Reply, questions, unasked, up_to_first_good
from d3llm_trt.cli.model_options import chat_form, model_options, open_model, token_text
from d3llm_trt.cli.options import PATH
from d3llm_trt.cli.request_options import decoding_options, sampling_options, sampling_params
from d3llm_trt.cli.streams import write_error, write_json, write_line
from d3llm_trt.cli.tally import Progress, Tally
from d3llm_trt.errors import ConfigError
from d3llm_trt.prompt_files import FORMATS, count_lines, format_of, read_entries, refusal
from d3llm_trt.runtime.outputs import RequestOutput

if TYPE_CHECKING:
    from d3llm_trt.runtime.llm import LLM


@click.command()
@click.argument("model", type=PATH)
@click.argument("prompt", nargs=-1)
@click.option(
    "--file",
    "-f",
    type=PATH,
    help='Prompts: .txt, one per line; .jsonl, {"prompt"|"messages"|"prompt_token_ids"} per line; .json, a list.',
)
@click.option("--format", "form", type=click.Choice(FORMATS), help="How --file is read.", show_default="by its suffix")
@click.option("--output", "-o", type=PATH, help="Append answers to this file instead, a JSON object per line.")
@click.option("--resume", is_flag=True, help="Go on with --output: skip prompts that it has answers to.")
@click.option("--chat/--raw", default=None, help="Wrap text as a user's message.", show_default="chat if possible")
@click.option("--system", metavar="TEXT", help="System message of every chat.")
@sampling_options
@decoding_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per prompt.")
@click.option("--watch", is_flag=True, help="Show the answer being unmasked; one prompt only.")
@click.option("--trace", type=PATH, help="Write a .png or .html of when each token was committed; one prompt only.")
def generate(model: Path, prompt: tuple[str, ...], **options: Any) -> int:
    """Answer PROMPTs with MODEL, an engine or checkpoint directory, or ORG/NAME[@REVISION] on the Hub.

    PROMPT - is standard input, which is also read when there is neither PROMPT nor --file. Each answer is printed to
    standard output as soon as those before it are; statistics go to standard error. Exit code 1: some prompts failed;
    2: bad input. docs/command-line.md says what a line of a file may hold.
    """
    params = sampling_params(options)
    _check(options)
    stdin = sys.stdin.buffer if sys.stdin else None
    asked = questions(read_entries(prompt, options["file"], options["form"], stdin), params)
    if options["watch"] or options["trace"]:
        return _show_one(model, list(asked), options)
    is_run = options["file"] is not None or options["output"] is not None
    return _answer_all(model, asked, _total(len(prompt), options) if is_run else None, options, is_run)


def _answer_all(
    model: Path, asked: Iterator[Question], total: int | None, options: dict[str, Any], is_run: bool
) -> int:
    """Answer all questions but those that --output has answers to. A run over a file tells how far it is."""
    tally = Tally()
    with ExitStack() as stack:
        file = None
        if options["output"] is not None:
            file = stack.enter_context(opened_answers(options["output"], options["resume"], options["file"]))
            _skip_answered(asked, file, tally)
        head, some_good = up_to_first_good(asked)
        if not (some_good or tally.done):
            raise refusal([question.entry for question in head])
        llm = stack.enter_context(open_model(model, options)) if some_good else None
        answers = _answers(llm, chain(head, asked), options)
        progress = stack.enter_context(Progress(tally, total, shown=is_run))
        for question, output in answers:
            progress.hide()
            _write(question, output, llm, file, as_json=options["as_json"], with_statistics=not is_run)
            tally.count(output.error, num_tokens(output))
            progress.show()
    return tally.exit_code


def _check(options: dict[str, Any]) -> None:
    """Raise ConfigError on options that do not go together, or a trace that cannot be written."""
    if options["trace"] is not None:
        from d3llm_trt.cli.trace import check_trace_path

        check_trace_path(options["trace"])
    if options["system"] is not None and options["chat"] is False:
        raise ConfigError("--system needs a chat; leave out --raw")
    if options["output"] is None and options["resume"]:
        raise ConfigError("--resume goes on with the file of --output; name it")
    if options["output"] is not None and (options["watch"] or options["trace"]):
        raise ConfigError("--watch and --trace show one answer; leave out --output")
    if options["file"] is None and options["form"] is not None:
        raise ConfigError("--format says how --file is read; give a file, or leave it out")


def _total(arguments: int, options: dict[str, Any]) -> int | None:
    """How many prompts there are, if that can be told before they are read."""
    path = options["file"]
    if path is None:
        return max(arguments, 1)  # without arguments, standard input is one
    lines = None if format_of(path, options["form"]) == "json" else count_lines(path)
    return None if lines is None else arguments + lines


def _skip_answered(asked: Iterator[Question], file: AnswersFile, tally: Tally) -> None:
    """Take the questions that the file has answers to. Raises ConfigError if they are not the same."""
    for answered in file.answered():
        question = next(asked, None)
        if question is None:
            raise ConfigError(f"{file.path}: holds more answers than there are prompts; give the same prompts")
        if question.entry.sha256 != answered.sha256:
            changed = f"another prompt than the one that {file.path} has an answer to"
            raise ConfigError(f"{question.entry.where}: {changed}; give the same prompts, or another --output")
        tally.count_before(answered.error)


def _answers(llm: LLM | None, asked: Iterable[Question], options: dict[str, Any]) -> Iterable[Reply]:
    """Each question with its answer; without an LLM none of them can be asked."""
    if llm is not None:
        chat = chat_form(llm, options["chat"], options["system"])
        return Asker(llm, chat, options["system"]).answers(asked)
    return ((question, unasked(question, error)) for question in asked if (error := question.entry.error) is not None)


def _write(
    question: Question,
    output: RequestOutput,
    llm: LLM | None,
    file: AnswersFile | None,
    *,
    as_json: bool,
    with_statistics: bool = True,
) -> None:
    """An answer to where answers go; what was wrong, or how it was made, to standard error."""
    if file is not None or as_json:
        row = answer_row(question.index, question.entry, question.others, output)
        (write_json if file is None else file.append)(row)
    elif output.error is None:
        write_line(answer_text(output, llm is None or llm.tokenizer is not None))
    if output.error is not None:
        write_error(f"{question.entry.where}: {output.error}")
    elif with_statistics and not as_json:
        click.secho(statistics(output), err=True, dim=True)


def _show_one(model: Path, asked: list[Question], options: dict[str, Any]) -> int:
    """Answer one prompt with a live view, or a picture of how it was made."""
    if len(asked) != 1:
        raise ConfigError(f"--watch and --trace take one prompt, but {len(asked)} are given; give one prompt")
    if asked[0].entry.error is not None:
        raise refusal([asked[0].entry])
    tally = Tally()
    with open_model(model, options) as llm:
        asker = Asker(llm, chat_form(llm, options["chat"], options["system"]), options["system"])
        ((question, output),) = [_watch(llm, asker, asked[0])] if options["watch"] else asker.answers(asked)
        tally.count(output.error)
        _write(question, output, llm, None, as_json=options["as_json"])
        if options["trace"] is not None and output.error is None:
            _write_trace(llm, output, options["trace"])
    return tally.exit_code


def _watch(llm: LLM, asker: Asker, question: Question) -> Reply:
    from d3llm_trt.cli.watch import watch

    stream = llm.generate_stream(asker.prompt_of(question), question.params, canvas=True)
    return question, watch(stream, token_text(llm), sys.stderr)


def _write_trace(llm: LLM, output: RequestOutput, path: Path) -> None:
    from d3llm_trt.cli.trace import write_trace

    ids = output.outputs[0].token_ids
    write_trace(output, [str(i) for i in ids] if llm.tokenizer is None else llm.tokenizer.pieces(ids), path)
