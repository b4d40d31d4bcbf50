"""The ``chat`` command: a conversation in the terminal, with the canvas unmasking as its view."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from d3llm_trt.cli.answers import statistics
from d3llm_trt.cli.chat_settings import changed_settings, shown_settings
from d3llm_trt.cli.model_options import can_chat, model_options, open_model, token_text
from d3llm_trt.cli.options import PATH, SOME_FAILED
from d3llm_trt.cli.request_options import decoding_options, sampling_options, sampling_params
from d3llm_trt.cli.streams import is_terminal, write_error, write_line
from d3llm_trt.errors import D3llmError, RequestError
from d3llm_trt.prompts import Message, as_chat
from d3llm_trt.settings import require

if TYPE_CHECKING:
    from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
    from d3llm_trt.runtime.llm import LLM
    from d3llm_trt.runtime.outputs import RequestOutput

PROMPT = "> "
HELP = """\
/reset            forget the conversation
/system [TEXT]    set the system message, or leave it out
/set              show the settings
/set NAME VALUE   change one, as in /set temperature 0.7
/help             show this
/exit             leave, as Ctrl-D does
Ctrl-C stops an answer; what there is of it stays in the conversation. A line that begins with a space is no command."""


@click.command()
@click.argument("model", type=PATH)
@click.option("--system", metavar="TEXT", help="System message.", show_default="the model's")
@click.option("--plain", is_flag=True, help="Print text as it grows on a terminal too, without the view of the canvas.")
@sampling_options
@decoding_options
@model_options
def chat(model: Path, system: str | None, plain: bool, **options: Any) -> int:
    """Talk with MODEL, an engine or checkpoint directory, or ORG/NAME[@REVISION] on the Hub.

    Lines that begin with / are commands; /help lists them. Where standard input or output is no terminal, messages are
    lines, answers are printed as they grow, and the exit code is 1 if one of them failed.
    """
    params = sampling_params(options)
    require(params.n == 1, "n", params.n, "1, since a chat goes on with one answer")
    on_terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout)
    with open_model(model, options) as llm:
        if not can_chat(llm):
            raise RequestError("chat needs a tokenizer with chat tokens, which this model lacks; use generate --raw")
        if on_terminal:
            click.secho(f"{llm!r}. /help lists the commands.", err=True, dim=True)
        session = Session(llm, params, system, view=is_terminal(sys.stdout) and not plain)
        for line in _lines(on_terminal):
            if not session.take(line):
                break
    return SOME_FAILED if session.failed and not on_terminal else 0


def _lines(on_terminal: bool) -> Iterator[str]:
    """What is typed, line by line, until the input ends; blank lines are left out."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused as a message
    if on_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 (which gives input() a history and keys to edit with)
    while True:
        try:
            line = input(PROMPT) if on_terminal else _next_line()
        except EOFError:
            if on_terminal:
                write_line("")
            return
        except KeyboardInterrupt:
            if not on_terminal:
                raise
            write_line("\n(Ctrl-D leaves)")
            continue
        if line.strip():
            yield line


def _next_line() -> str:
    if sys.stdin is None or not (line := sys.stdin.readline()):
        raise EOFError
    return line.removesuffix("\n")


class Session:
    """One conversation and its settings.

    Args:
        llm: who answers.
        params: settings of each answer.
        system: the system message; None leaves it to the model.
        view: show the canvas while it is unmasked, instead of text as it grows.
    """

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, view: bool) -> None:
        self.failed = False
        self._llm, self._params, self._system, self._view = llm, params, system, view
        self._messages: list[Message] = []

    def take(self, line: str) -> bool:
        """Answer a message or obey a command. False if that was to leave. Raises what broke the engine."""
        try:
            if not line.startswith("/"):
                self._answer(line.strip())
                return True
            name, _, rest = line.strip().partition(" ")
            return self._obey(name, rest.strip())
        except D3llmError as error:
            self.failed = True
            if not self._llm.healthy:
                raise
            write_error(str(error))
            return True

    def _obey(self, name: str, rest: str) -> bool:
        if name == "/reset":
            self._messages.clear()
        elif name == "/system":
            self._system = rest or None
        elif name == "/set" and not rest:
            write_line(shown_settings(self._params))
        elif name == "/set":
            self._params = changed_settings(self._params, *rest.split(maxsplit=1))
        elif name == "/help":
            write_line(HELP)
        else:
            require(name in ("/exit", "/quit"), "command", name, "/reset, /system, /set, /help, /exit", RequestError)
            return False
        return True

    def _answer(self, text: str) -> None:
        """Ask, show the answer, and remember both; nothing is remembered of what failed."""
        asked: list[Message] = [*self._messages, {"role": "user", "content": text}]
        stream = self._llm.generate_stream(as_chat(asked, self._system), self._params, canvas=self._view)
        last = _Last(stream)
        try:
            (self._show_view if self._view else _show_growing)(last)
        except KeyboardInterrupt:
            write_line("" if not self._view else last.text)
            click.secho("(stopped)", err=True, dim=True)
        if last.output is not None:
            self._messages = [*asked, {"role": "assistant", "content": last.text}]

    def _show_view(self, last: _Last) -> None:
        from d3llm_trt.cli.watch import watch

        output = watch(last, token_text(self._llm), sys.stdout, keep=False)
        write_line(last.text)
        click.secho(statistics(output), err=True, dim=True)


class _Last:
    """The outputs of a stream, of which the last one is remembered."""

    def __init__(self, stream: Iterator[RequestOutput]) -> None:
        self._stream = stream
        self.output: RequestOutput | None = None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "" if self.output is None else self.output.outputs[0].text

    def __iter__(self) -> Iterator[RequestOutput]:
        for output in self._stream:
            self.output = output
            yield output


def _show_growing(last: _Last) -> None:
    """Text as it grows; what is shown is never taken back."""
    shown = 0
    for _ in last:
        sys.stdout.write(last.text[shown:])
        sys.stdout.flush()
        shown = len(last.text)
    write_line("")
