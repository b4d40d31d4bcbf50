"""A live view of an answer being unmasked: text coloured by the pass that committed it, masks as dim dots."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from d3llm_trt.cli.palette import hex_colour, ink_on, pass_colour, printable
from d3llm_trt.runtime.decoding.state import MASKED
from d3llm_trt.runtime.outputs import Canvas, RequestOutput

MASK = "·"
Show = Callable[[int], str]


def watch(outputs: Iterable[RequestOutput], show: Show, file: TextIO, *, keep: bool = True) -> RequestOutput:
    """Draw each output's canvas on ``file`` and return the last output; plain lines if ``file`` is no terminal.

    ``show`` gives the text of one token id. Without ``keep`` nothing of the drawing stays on the terminal.
    """
    console = Console(file=file)
    last: RequestOutput | None = None
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop", transient=not keep) as live:
            for last in outputs:
                if last.canvas is not None:
                    line = Text(progress_line(last), style="dim")
                    live.update(Group(canvas_text(last.canvas, show), line), refresh=True)
    else:
        for last in outputs:
            print(progress_line(last), file=file, flush=True)
    if last is None:
        raise RuntimeError("the stream gave no output")
    return last


def canvas_text(canvas: Canvas, show: Show) -> Text:
    """The generated part of a canvas. The newest passes are the brightest."""
    text = Text(overflow="fold")
    steps = canvas.commit_steps[canvas.prompt_length :]
    newest = max(steps, default=1)
    for token_id, step in zip(canvas.token_ids[canvas.prompt_length :], steps, strict=True):
        if step == MASKED:
            text.append(MASK, style="dim")
        else:
            colour = pass_colour(step, newest)
            style = f"{ink_on(colour)} on {hex_colour(colour)}"
            text.append(printable(show(token_id), keep=" \n"), style=style)
    return text


def progress_line(output: RequestOutput) -> str:
    """How far an answer is, in one line."""
    passes = output.metrics.num_forward_passes
    if output.canvas is None:
        return f"pass {passes}"
    steps = output.canvas.commit_steps[output.canvas.prompt_length :]
    return f"pass {passes}: {sum(step != MASKED for step in steps)} of {len(steps)} tokens"
