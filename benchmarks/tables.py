"""Tables of numbers in the documents, made from ``benchmarks/results`` and, for memory, from the estimate.

``python benchmarks/tables.py`` rewrites what stands between ``<!-- table NAME -->`` and ``<!-- end NAME -->`` in
the DOCUMENTS; with ``--check`` it only says whether all of them are up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d3llm_trt.bench.shapes import SHAPES
from d3llm_trt.capacity import Capacity, estimate
from d3llm_trt.config import BuildConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
GIB = 2**30
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "evidence.md", ROOT / "docs" / "performance.md")


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, rule, *rows))


def attention_table() -> str:
    """Attention kernels against torch's best."""
    found = _read("kernels.json")
    rows = []
    for case in found["attention"]:
        best = case["torch_attention_us"][case["torch_best"]]
        whole = case["window_attention_us"]
        rows.append(
            (
                case["shape"],
                f"{best:.1f} ({case['torch_best']})",
                f"{case['attend_us']:.1f}",
                f"{case['attend_speed_over_torch']:.2f}",
                f"{whole / case['whole_time_over_torch']:.1f}",
                f"{whole:.1f}",
            )
        )
    headings = ("", "torch attention, µs", "ours, µs", "speed", "torch, all three, µs", "ours, all three, µs")
    return f"{found['device']}, torch {found['torch']}, bfloat16:\n\n" + markdown(headings, rows)


def select_table() -> str:
    """Select and commit."""
    found = _read("kernels.json")
    select = found["select"]
    rows = [
        ("select, 256 rows of 126,464 in bfloat16", f"{select['select_us']:.1f}"),
        ("select with sampling", f"{select['select_sampling_us']:.1f}"),
        *((f"select with {limits}", f"{time:.1f}") for limits, time in select.get("select_limited_us", {}).items()),
        ("select, 32 rows", f"{select['select_32_rows_us']:.1f}"),
        ("select and commit", f"{select['select_and_commit_us']:.1f}"),
        ("select in torch", f"{select['torch_select_us']:.0f}"),
    ]
    share = select["select_over_copy_bandwidth"]
    table = markdown((found["device"], "µs"), rows)
    return f"{table}\n\nSelect reads {share:.0%} of what a device copy moves per second."


def steps_table() -> str:
    """Whole steps and whole answers, in bfloat16 and FP8."""
    found = _read("steps.json")
    small = found["fp8"]
    steps = [(name, *_step_cells(case), *_step_cells(small["steps"][name])) for name, case in found["steps"].items()]
    steps += [
        (f"LLaDA, batch 1, {name}", f"{1e3 * time:.2f}", *[""] * 5) for name, time in found["peer_seconds"].items()
    ]
    fast = {case["what"]: f"{case['tokens_per_second']:.0f}" for case in small["answers"]}
    answers = [
        (
            case["what"],
            f"{case['input_len']}",
            f"{case['tokens_per_forward']:.2f}",
            f"{case['tokens_per_second']:.0f}",
            fast.get(case["what"], ""),
        )
        for case in found["answers"]
    ]
    columns = ("bf16, ms", "of it products", "aim on an H200", "FP8, ms", "of it products", "aim on an H200")
    first = markdown((f"one step, {found['device']}", *columns), steps)
    rates = ("prompt", "tokens per pass", "tokens per second, bf16", "FP8")
    return f"{first}\n\n{markdown(('256 tokens of the shape of LLaDA-8B', *rates), answers)}"


def _step_cells(case: dict[str, Any]) -> tuple[str, str, str]:
    return f"{case['milliseconds']:.2f}", f"{case['products']:.2f}", f"{case['target_ms_h200']:g}"


def tiny_table() -> str:
    """Accuracy of the tiny checkpoints on the CPU, and on a GPU in bfloat16 and FP8."""
    titles = {"LowConfidence": "`LowConfidence`", "FullAttnMultiBlock 0.4": "`FullAttnMultiBlock`, threshold 0.4"}
    runs = [_read(f"tiny_d3llm{run}.json") for run in ("", "_h100", "_h100_fp8")]
    rows = []
    for family in ("llada", "dream"):
        for key in runs[0][family]:
            algorithm, tokens = key.split(", max_tokens ")
            found = [run[family][key] for run in runs]
            exact, rates = (
                [f"{one['exact']:.1%}" for one in found],
                [f"{one['tokens_per_forward']:.2f}" for one in found],
            )
            if algorithm in titles:
                rows.append((f"tiny-d3llm-{family}, {titles[algorithm]}", tokens, *exact, *rates))
    kinds = ("CPU", "GPU", "GPU, FP8")
    columns = ("`max_tokens`", *(f"exact, {kind}" for kind in kinds), *(f"TPF, {kind}" for kind in kinds))
    return markdown((f"GPU: {runs[1]['device']}", *columns), rows)


def triton_table() -> str:
    """Triton against LLM.generate."""
    found = _read("triton_gpu_fp8.json")
    plain = {name: one for name, one in found["triton"].items() if "client" in name}
    streamed = {f"streamed, {name}": one for name, one in found["triton"]["streamed"].items()}
    measured = {f"`LLM.generate`, {name}": one for name, one in found["generate"].items()}
    measured |= {f"Triton, {name}": one for name, one in (plain | streamed).items()}
    rows = [
        (
            name,
            f"{one['tokens_per_second']:.0f}",
            f"{one['latency_median'] * 1e3:.0f}",
            f"{one['latency_p95'] * 1e3:.0f}",
        )
        for name, one in measured.items()
    ]
    headings = ("tokens per second", "median latency, ms", "95 %, ms")
    engine = found["engine"]
    return markdown((f"{engine['shape']}, {engine['quantization']}, {found['device']}", *headings), rows)


def memory_table() -> str:
    """What the published shapes take on a GPU, in GiB."""
    models = {"llada-8b": "LLaDA-8B", "dream-7b": "Dream-7B and Dream-Coder-7B"}
    rows = []
    for shape, name in models.items():
        for quantization, shown in ((None, "bfloat16"), ("fp8", "FP8")):
            one, eight = (_memory(shape, quantization, batch) for batch in (1, 8))
            each = f"{one.kv_cache / GIB:.2f}", f"{one.activations / GIB:.2f}"
            rows.append((f"{name}, {shown}", f"{one.weights / GIB:.1f}", *each, _all(one), _all(eight)))
    columns = ("weights", "KV cache per request", "activations per request", "all, batch 1", "all, batch 8")
    return markdown(("GiB", *columns), rows)


def _memory(shape: str, quantization: str | None, batch: int) -> Capacity:
    config = SHAPES[shape]
    settings = BuildConfig(quantization=quantization, max_batch_size=batch, max_seq_len=1024)
    return estimate(config, settings.resolved(config.max_position_embeddings, "bfloat16"))


def _all(need: Capacity) -> str:
    return f"{(need.weights + need.kv_cache + need.activations) / GIB:.1f}"


TABLES: dict[str, Callable[[], str]] = {
    "attention": attention_table,
    "memory": memory_table,
    "select": select_table,
    "steps": steps_table,
    "tiny": tiny_table,
    "triton": triton_table,
}


def renewed(text: str) -> str:
    """A document with its tables made afresh. Raises KeyError on a table that does not exist."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table {name} -->\n{TABLES[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- table (\w+) -->.*?<!-- end \1 -->", table, text, flags=re.DOTALL)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def main() -> None:
    """Rewrite the documents, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if a table is out of date")
    check = parser.parse_args().check
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        if check and renewed(text) != text:
            sys.exit(f"{document.relative_to(ROOT)} is out of date; run python benchmarks/tables.py")
        if not check:
            document.write_text(renewed(text), encoding="utf-8")


if __name__ == "__main__":
    main()
