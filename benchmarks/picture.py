"""A picture of ``results/steps.json``: ``python benchmarks/picture.py`` writes docs/images/speed.png.

Left one full step beside plain torch, by what the GPU does in it; right tokens per second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d3llm_trt.cli.palette import ANCHORS, hex_colour

ROOT = Path(__file__).parents[1]
STEP = "LLaDA, batch 1, 376 tokens, 256 candidates"
PARTS = ("matrix products", "attention", "norm and activation")
BATCHES = ("batch 1", "batch 4", "batch 8")
COLOURS = [hex_colour(anchor) for anchor in ANCHORS]
PLAIN = "#bbbbbb"


def draw_step(axes: Axes, found: dict[str, Any]) -> None:
    """Milliseconds of one step: torch eager, torch compiled, ours in bfloat16 and FP8."""
    peers = {name: seconds * 1e3 for name, seconds in found["peer_seconds"].items()}
    for name, milliseconds in peers.items():
        axes.barh(name, milliseconds, color=PLAIN)
    totals = list(peers.values())
    for name, case in (("ours, bfloat16", found["steps"][STEP]), ("ours, FP8", found["fp8"]["steps"][STEP])):
        spans = [case["kernels"][part] for part in PARTS]
        spans.append(case["milliseconds"] - sum(spans))
        for part, left, span in zip((*PARTS, "everything else"), _before(spans), spans, strict=True):
            axes.barh(name, span, left=left, color=_colour(part), label=part if name == "ours, FP8" else None)
        totals.append(case["milliseconds"])
    for row, total in enumerate(totals):
        axes.text(total, row, f" {total:.1f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(totals) * 1.12)
    axes.set_xlabel("milliseconds per step of 376 tokens, 256 candidates", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="lower right")


def draw_answers(axes: Axes, found: dict[str, Any]) -> None:
    """Tokens per second by batch size, in bfloat16 and FP8."""
    for offset, (name, answers) in enumerate((("bfloat16", found["answers"]), ("FP8", found["fp8"]["answers"]))):
        rates = {case["what"]: case["tokens_per_second"] for case in answers}
        places = [index + (offset - 0.5) * 0.38 for index in range(len(BATCHES))]
        bars = axes.bar(places, [rates[name] for name in BATCHES], 0.36, color=COLOURS[1 + offset], label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    axes.set_xticks(range(len(BATCHES)), BATCHES)
    axes.set_ylabel("tokens per second at 9.85 per pass", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="upper left")


def _before(spans: list[float]) -> list[float]:
    return [sum(spans[:index]) for index in range(len(spans))]


def _colour(part: str) -> str:
    return dict(zip(PARTS, COLOURS, strict=False)).get(part, PLAIN)


def main() -> None:
    """Write the picture."""
    found = json.loads((ROOT / "benchmarks" / "results" / "steps.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    draw_step(left, found)
    draw_answers(right, found)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle(f"The shape of LLaDA-8B with random weights on one {found['device']}", fontsize=10)
    figure.savefig(ROOT / "docs" / "images" / "speed.png", dpi=130)


if __name__ == "__main__":
    main()
