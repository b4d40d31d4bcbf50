"""The results of a benchmark as a table, and as a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from d3llm_trt.bench.measure import Measurement
from d3llm_trt.errors import ConfigError
from d3llm_trt.files import check_picture_path, replace_file
from d3llm_trt.write_errors import naming_causes

BAR_COLOUR = "#21918c"


@dataclass(frozen=True)
class Report:
    """One benchmark. ``kernel_seconds`` by batch size and kind of kernel; ``peers`` are seconds of one full step."""

    model: str
    device: str
    decoding: dict[str, Any]
    simulated_tpf: float | None
    cuda_graphs: str | None
    measurements: list[Measurement]
    kernel_seconds: dict[int, dict[str, float]]
    peers: dict[str, float]
    torch: str = str(torch.__version__)


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def print_report(report: Report) -> None:
    """Tables on standard output."""
    from rich.console import Console
    from rich.table import Table

    acceptance = "" if report.simulated_tpf is None else f", acceptance simulated at {report.simulated_tpf} per pass"
    table = Table(title=f"{report.model} on {report.device}{acceptance}", title_justify="left")
    for heading in ("batch", "prompt", "generated", "passes", "tokens/pass", "ms/pass", "tokens/s"):
        table.add_column(heading, justify="right")
    for run in report.measurements:
        cells = (run.batch_size, run.input_len, run.output_len, f"{run.forward_passes:g}")
        figures = (f"{run.tokens_per_forward:.2f}", f"{run.seconds_per_pass * 1e3:.2f}", f"{run.tokens_per_second:.0f}")
        table.add_row(*map(str, cells), *figures)
    console = Console()
    console.print(table)
    for batch, kinds in report.kernel_seconds.items():
        total = sum(kinds.values())
        parts = ", ".join(f"{kind} {seconds / total:.1%}" for kind, seconds in kinds.items())
        console.print(f"batch {batch}: the GPU was busy for {total * 1e3:.1f} ms: {parts}")
    for peer, seconds in report.peers.items():
        console.print(f"{peer}: {seconds * 1e3:.2f} ms a full step")


def check_picture(path: Path) -> None:
    """Raise ConfigError unless a picture can be written to ``path``; cheap, so call it before measuring."""
    check_picture_path("--plot", path, (".png",), "--plot needs matplotlib: pip install d3llm-trt[trace]")


def write_picture(report: Report, path: Path) -> None:
    """Tokens per second by batch size, as a bar chart. Raises ConfigError if it cannot be written."""
    from matplotlib.figure import Figure

    check_picture(path)
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    names = [f"batch {run.batch_size}" for run in report.measurements]
    bars = axes.bar(names, [run.tokens_per_second for run in report.measurements], color=BAR_COLOUR)
    axes.bar_label(bars, fmt="%.0f")
    axes.set_ylabel("generated tokens per second")
    axes.set_title(f"{report.model}, {report.device}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    with naming_causes(path, ConfigError, "choose another file for --plot"):
        replace_file(path, content.getvalue())
