"""A picture of one answer: every token coloured by the forward pass that committed it."""

from __future__ import annotations

import html
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from string import Template

from d3llm_trt.cli.palette import ANCHORS, hex_colour, ink_on, pass_colour, printable
from d3llm_trt.errors import ConfigError
from d3llm_trt.files import check_picture_path, replace_file
from d3llm_trt.runtime.outputs import RequestOutput
from d3llm_trt.write_errors import naming_causes

SUFFIXES = (".png", ".html")
PAGE = Path(__file__).with_name("trace.html")
CELL_WIDTH, CELL_HEIGHT, CELL_CHARACTERS = 0.85, 0.3, 10  # inches, inches, at the font size used
MAX_PIXELS = 30_000  # of a side; the PNG writer's own limit is 65536


def check_trace_path(path: Path) -> None:
    """Raise ConfigError unless a trace can be written to ``path``; cheap, so call it before generating."""
    missing = "a .png trace needs matplotlib: pip install d3llm-trt[trace], or write a .html trace"
    check_picture_path("trace file", path, SUFFIXES, missing)


def write_trace(output: RequestOutput, tokens: Sequence[str], path: Path) -> None:
    """Write the picture of ``output``, whose tokens read ``tokens``. Raises ConfigError if it cannot be written."""
    check_trace_path(path)
    steps = output.outputs[0].commit_steps if output.outputs else []
    if len(tokens) != len(steps):
        raise ValueError(f"{len(tokens)} token texts for {len(steps)} tokens")
    draw = _png if path.suffix.lower() == ".png" else _html
    content = draw(tokens, steps, _title(output))
    with naming_causes(path, ConfigError, "choose another trace file"):
        replace_file(path, content)


def _title(output: RequestOutput) -> str:
    metrics, count = output.metrics, len(output.outputs[0].token_ids) if output.outputs else 0
    return (
        f"{count} tokens in {metrics.num_forward_passes} forward passes,"
        f" {metrics.tokens_per_forward:.2f} tokens per pass"
    )


def _png(tokens: Sequence[str], steps: Sequence[int], title: str) -> bytes:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    last, columns = max(steps, default=1), 16 if len(tokens) <= 512 else 32
    rows = max(math.ceil(len(tokens) / columns), 1)
    width, height = columns * CELL_WIDTH + 1.5, rows * CELL_HEIGHT + 1.2
    figure = Figure(figsize=(width, height), dpi=min(130, MAX_PIXELS / max(width, height)), layout="constrained")
    axes = figure.add_subplot()
    white = (255, 255, 255)
    cells = [pass_colour(step, last) for step in steps] + [white] * (rows * columns - len(tokens))
    axes.imshow([cells[row * columns : (row + 1) * columns] for row in range(rows)], aspect="auto")
    for index, (token, step) in enumerate(zip(tokens, steps, strict=True)):
        axes.text(
            index % columns, index // columns, _short(token), color=ink_on(pass_colour(step, last)),
            ha="center", va="center", fontsize=8, family="monospace", parse_math=False,
        )  # fmt: skip
    axes.vlines([column + 0.5 for column in range(columns - 1)], -0.5, rows - 0.5, color="white", linewidth=1)
    axes.hlines([row + 0.5 for row in range(rows - 1)], -0.5, columns - 0.5, color="white", linewidth=1)
    axes.set_xticks([])
    axes.set_yticks(range(rows), [str(row * columns) for row in range(rows)], fontsize=7)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=11)
    colours = LinearSegmentedColormap.from_list("passes", [hex_colour(anchor) for anchor in ANCHORS])
    scale = ScalarMappable(Normalize(1, max(last, 2)), colours)
    figure.colorbar(scale, ax=axes, label="committed in pass", ticks=MaxNLocator(integer=True), fraction=0.03, pad=0.01)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A script without a glyph in the font is drawn as boxes; the rest of the picture stays useful.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _short(token: str) -> str:
    text = printable(token)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def _html(tokens: Sequence[str], steps: Sequence[int], title: str) -> bytes:
    last = max(steps, default=1)
    spans = (_span(index, token, step, last) for index, (token, step) in enumerate(zip(tokens, steps, strict=True)))
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title), gradient=", ".join(map(hex_colour, ANCHORS)), last=last, tokens="\n".join(spans)
    )
    return page.encode("utf-8", errors="replace")


def _span(index: int, token: str, step: int, last: int) -> str:
    colour = pass_colour(step, last)
    style = f"background:{hex_colour(colour)};color:{ink_on(colour)}"
    hover = f"pass {step}, position {index}"
    line_end = "<br>" if "\n" in token else ""
    return f'<span data-pass="{step}" title="{hover}" style="{style}">{html.escape(printable(token))}</span>{line_end}'
