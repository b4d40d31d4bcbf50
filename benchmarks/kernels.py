"""The kernels against torch's best on the same GPU in the same run.

``python benchmarks/kernels.py --output benchmarks/results/kernels.json``

Times are medians of CUDA graph replays; each graph holds a few dozen launches over several sets of inputs, so that
inputs do not all lie in the L2 cache. Torch's attention is the fastest of its backends, and of repeating K/V heads or
not; its RoPE and cache copy are the faster of eager and ``torch.compile``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from d3llm_trt import DecodingConfig, SamplingParams
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.plugins import library, ops, reference
from d3llm_trt.plugins.commit import commit
from d3llm_trt.plugins.decoding_state import BoundState
from d3llm_trt.plugins.reference import Selected
from d3llm_trt.runtime.decoding.state import DecodingState
from d3llm_trt.runtime.decoding.step import first_pass

Launch = Callable[[], object]
DTYPE, DIM = torch.bfloat16, 128
BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
VOCAB, MASK, ROWS = 126464, 126336, 256
HEADS = {"LLaDA": (32, 32), "Dream": (28, 4)}
WIDTHS = {"LLaDA": (4096, 12288), "Dream": (3584, 18944)}  # hidden, intermediate
SETS, LAUNCHES, REPLAYS = 6, 24, 30


@dataclass(frozen=True)
class Target:
    """What the issue asks for, and whether this run has it."""

    what: str
    wanted: str
    found: str
    met: bool


def median_us(launches: Sequence[Launch], before: Launch | None = None, repeats: int | None = None) -> float:
    """Microseconds of one launch: all of them ``repeats`` times in one CUDA graph, ``before`` it what is not timed."""
    repeats = repeats or max(1, LAUNCHES // len(launches))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for launch in [*launches] * 3:
            launch()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for launch in launches:
                launch()
    spans = []
    for _ in range(REPLAYS):
        if before is not None:
            before()
        span = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        span[0].record()
        graph.replay()
        span[1].record()
        spans.append(span)
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in spans) * 1e3 / (repeats * len(launches))


@dataclass(frozen=True)
class Shape:
    """``batch`` windows of ``window`` rows at the end of ``length`` positions."""

    model: str
    batch: int
    window: int
    length: int

    @property
    def name(self) -> str:
        cached = f" over {self.length - self.window} cached" if self.window < self.length else ""
        return f"{self.model} {self.batch}x{self.window}{cached}"

    @property
    def flops(self) -> int:
        return 4 * self.batch * self.window * self.length * HEADS[self.model][0] * DIM


SHAPES = [
    Shape(model, *sizes)
    for model in HEADS
    for sizes in ((1, 376, 376), (4, 376, 376), (1, 1024, 1024), (1, 4096, 4096), (1, 128, 1152))
]


@dataclass(frozen=True)
class Inputs:
    """One set of inputs of attention, and what torch's parts of it need."""

    shape: Shape
    given: dict[str, Tensor]
    out: Tensor
    q: Tensor

    @classmethod
    def random(cls, shape: Shape) -> Inputs:
        heads, kv_heads = HEADS[shape.model]
        rows, start, angles = (
            shape.batch * shape.window,
            shape.length - shape.window,
            torch.rand(shape.length, DIM // 2),
        )
        given = {
            "qkv": torch.randn(rows, (heads + 2 * kv_heads) * DIM, dtype=DTYPE, device="cuda"),
            "kv_cache": torch.randn(shape.batch, 2, kv_heads, shape.length, DIM, dtype=DTYPE, device="cuda"),
            "positions": torch.arange(start, shape.length, device="cuda").repeat(shape.batch),
            "cu_window": torch.arange(shape.batch + 1, device="cuda") * shape.window,
            "kv_lengths": torch.full((shape.batch,), shape.length, device="cuda"),
            "slots": torch.arange(shape.batch, device="cuda"),
            "cos": angles.cos().cuda(),
            "sin": angles.sin().cuda(),
        }
        out = torch.empty(rows, heads * DIM, dtype=DTYPE, device="cuda")
        q = torch.randn(shape.batch, shape.window, heads, DIM, dtype=DTYPE, device="cuda").transpose(1, 2)
        return cls(shape, given, out, q)

    def kernel(self, name: str) -> Launch:
        params, handle = ops.attention_params(ops.AttentionInputs(**self.given), self.out), library.load()
        return lambda: handle.launch(name, params, torch.cuda.current_stream().cuda_stream)

    def torch_attention(self, repeated: bool) -> Tensor:
        keys, values = self.given["kv_cache"].unbind(1)
        ratio = self.q.shape[1] // keys.shape[1]
        if repeated:
            keys, values = keys.repeat_interleave(ratio, 1), values.repeat_interleave(ratio, 1)
        return F.scaled_dot_product_attention(self.q, keys, values, enable_gqa=ratio > 1 and not repeated)

    def rope_arguments(self) -> tuple[Tensor, ...]:
        at = self.given["positions"][: self.shape.window]
        cos, sin = self.given["cos"][at][:, None], self.given["sin"][at][:, None]
        start = self.shape.length - self.shape.window
        return self.given["qkv"], self.given["kv_cache"][:, :, :, start:], cos, sin


def rope_and_copy(qkv: Tensor, cache: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Torch's RoPE of q and k, and copies of K and V into ``cache[batch, 2, kv_heads, window, d]``; returns q."""
    batch, _, kv_heads, window, dim = cache.shape
    heads = qkv.shape[1] // dim - 2 * kv_heads
    q, k, v = qkv.view(batch, window, -1, dim).split([heads, kv_heads, kv_heads], dim=2)
    cache[:, 0].copy_(reference.rotate(k, cos, sin).transpose(1, 2))
    cache[:, 1].copy_(v.transpose(1, 2))
    return reference.rotate(q, cos, sin)


def torch_attention_times(sets: Sequence[Inputs]) -> dict[str, float]:
    """Per backend and treatment of K/V heads; those that torch does not have for this shape are left out."""
    heads, kv_heads = HEADS[sets[0].shape.model]
    times = {}
    for backend in BACKENDS:
        for repeated in (False, True) if heads != kv_heads else (False,):
            name = f"{backend.name.removesuffix('_ATTENTION').lower()}{' repeated' if repeated else ''}"
            launches = [partial(inputs.torch_attention, repeated) for inputs in sets]
            with sdpa_kernel(backend):
                try:
                    launches[0]()
                except RuntimeError as error:
                    print(f"{sets[0].shape.name}: {name}: {str(error).splitlines()[0]}")
                    continue
                times[name] = median_us(launches)
    return times


def attention_row(shape: Shape, variants: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    sets = [Inputs.random(shape) for _ in range(SETS)]
    backends = torch_attention_times(sets)
    ropes = {
        name: median_us([partial(rope, *inputs.rope_arguments()) for inputs in sets]) for name, rope in variants.items()
    }
    ours = {
        name: median_us([inputs.kernel(name) for inputs in sets]) for name in ("write_kv", "attend", "window_attention")
    }
    best = min(backends, key=lambda name: backends[name])
    return {
        "shape": shape.name,
        "length": shape.length,
        "window": shape.window,
        "torch_attention_us": backends,
        "torch_best": best,
        "torch_rope_and_copy_us": ropes,
        **{f"{name}_us": time for name, time in ours.items()},
        "attend_tflops": shape.flops / ours["attend"] / 1e6,
        "torch_tflops": shape.flops / backends[best] / 1e6,
        "attend_speed_over_torch": backends[best] / ours["attend"],
        "whole_time_over_torch": ours["window_attention"] / (backends[best] + min(ropes.values())),
    }


def attention_targets(row: dict[str, Any]) -> list[Target]:
    whole, speed = row["whole_time_over_torch"], row["attend_speed_over_torch"]
    targets = [Target(f"{row['shape']}: whole time over torch's", "<= 1", f"{whole:.2f}", whole <= 1)]
    if row["window"] <= 1024:
        targets.append(Target(f"{row['shape']}: attention speed over torch's", ">= 0.8", f"{speed:.2f}", speed >= 0.8))
    return targets


def copy_bandwidth() -> float:
    """Bytes read and written per second by a device copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_us([partial(target.copy_, source)], repeats=4) * 1e6


def random_logits(rows: int) -> list[Tensor]:
    """Sets that together are larger than any L2."""
    sets = max(2, min(16, 4 * ROWS // rows))
    return [torch.randn(rows, VOCAB, device="cuda").mul(4).to(DTYPE) for _ in range(sets)]


def select_time(rows: int, eps: float, sampling: bool = False, top_k: int = 0, top_p: float = 1.0) -> float:
    """Microseconds for random rows, with all that a step gives to the kernel where it samples."""
    number, smoothing = torch.arange(rows, device="cuda"), torch.full((rows,), eps, device="cuda")
    keys: tuple[Tensor, ...] = ()
    if sampling:
        keys = (torch.full((rows,), 0.7, device="cuda"), number, number, number)
        keys += (torch.full_like(number, top_k), torch.full_like(number, top_p, dtype=torch.float64))
    return median_us([partial(ops.select, x, MASK, smoothing, *keys) for x in random_logits(rows)])


def torch_select_time(rows: int) -> float:
    eps = torch.full((rows,), 1e-12, device="cuda")
    return median_us([partial(reference.select, x, MASK, eps, None) for x in random_logits(rows)[:2]], repeats=2)


def select_and_commit_time() -> float:
    """One request whose answer is one block of ROWS masks; each pair of launches has a slot of its own."""
    config = ModelConfig("llada", VOCAB, 4096, 12288, 32, 32, 32, DIM, 1e-5, 5e5, 4096, MASK, 126081, 126081)
    params = SamplingParams(max_tokens=ROWS, decoding=DecodingConfig("FullAttnMultiBlock", block_size=ROWS))
    settings, progress = first_pass(config, [1] * 120, params)
    assert int(progress.candidates.sum()) == ROWS
    state = DecodingState.empty(LAUNCHES, 1024, torch.device("cuda"))
    for slot in range(LAUNCHES):
        state.admit(slot, settings, progress)
    bound = BoundState(state.settings, state.progress)
    fresh, chosen = state.clone(), progress.candidates[0].nonzero()[:, 0].cuda()
    logits, eps = random_logits(ROWS), settings.entropy_eps.cuda().expand(ROWS).contiguous()

    def pair(slot: int, slots: Tensor) -> None:
        selected = Selected(*ops.select(logits[slot % len(logits)], MASK, eps))
        commit(bound, selected, slots, chosen, width=progress.canvas.shape[1], mask_id=MASK, family="llada")

    slots = [torch.tensor([slot], device="cuda") for slot in range(LAUNCHES)]
    return median_us(
        [partial(pair, slot, slots[slot]) for slot in range(LAUNCHES)], before=partial(state.restore, fresh), repeats=1
    )


def select_results() -> dict[str, Any]:
    copied, alone = copy_bandwidth(), select_time(ROWS, 1e-12)
    read = ROWS * VOCAB * DTYPE.itemsize / alone * 1e6
    return {
        "rows": ROWS,
        "vocab": VOCAB,
        "copy_bytes_per_second": copied,
        "select_us": alone,
        "select_bytes_per_second": read,
        "select_over_copy_bandwidth": read / copied,
        "select_literal_entropy_us": select_time(ROWS, 1e-8),
        "select_sampling_us": select_time(ROWS, 1e-12, sampling=True),
        "select_limited_us": {
            f"top_k {top_k}, top_p {top_p}": select_time(ROWS, 1e-12, True, top_k, top_p)
            for top_k, top_p in ((0, 0.9), (50, 1.0), (20, 0.8))
        },
        "select_32_rows_us": select_time(32, 1e-12),
        "select_1_row_us": select_time(1, 1e-12),
        "torch_select_us": torch_select_time(ROWS),
        "select_and_commit_us": select_and_commit_time(),
    }


def select_targets(found: dict[str, Any]) -> list[Target]:
    share, both = found["select_over_copy_bandwidth"], found["select_and_commit_us"]
    return [
        Target("select's reading over copy bandwidth", ">= 0.70", f"{share:.2f}", share >= 0.7),
        Target("select + commit, microseconds", "<= 60", f"{both:.1f}", both <= 60),
    ]


def elementwise_rows(model: str, rows: int, compiled: bool) -> list[dict[str, Any]]:
    hidden, intermediate = WIDTHS[model]
    weight, scale = torch.ones(hidden, dtype=DTYPE, device="cuda"), torch.tensor(0.02, device="cuda")
    sums = [[torch.randn(rows, hidden, device="cuda").to(DTYPE) for _ in range(2)] for _ in range(SETS)]
    gates = [torch.randn(rows, 2 * intermediate, device="cuda").to(DTYPE) for _ in range(SETS)]
    norm: dict[str, Callable[..., Any]] = {"": ops.add_rms_norm, "torch_": reference.add_rms_norm}
    gate: dict[str, Callable[..., Any]] = {"": ops.silu_mul, "torch_": reference.silu_mul}
    if compiled:
        norm["torch_compiled_"] = torch.compile(reference.add_rms_norm)
        gate["torch_compiled_"] = torch.compile(reference.silu_mul)
    name = f"{model} {rows} rows"
    normed = {f"{kind}us": median_us([partial(f, *p, weight, 1e-5) for p in sums]) for kind, f in norm.items()}
    gated = {f"{kind}us": median_us([partial(f, x) for x in gates]) for kind, f in gate.items()}
    normed["fp8_us"] = median_us([partial(ops.add_rms_norm, *p, weight, 1e-5, scale) for p in sums])
    gated["fp8_us"] = median_us([partial(ops.silu_mul, x, scale) for x in gates])
    return [{"op": f"add_rms_norm, {name}", **normed}, {"op": f"silu_mul, {name}", **gated}]


def shown(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == columns[0] else "right")
    for row in rows:
        values = [row.get(column, "") for column in columns]
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in values))
    return table


def print_all(result: dict[str, Any], targets: Sequence[Target]) -> None:
    console = Console(width=170)
    rows = [
        {
            **row,
            "torch_attention_us": row["torch_attention_us"][row["torch_best"]],
            "torch_rope_and_copy_us": min(row["torch_rope_and_copy_us"].values()),
        }
        for row in result["attention"]
    ]
    attention = (
        "shape torch_best torch_attention_us torch_rope_and_copy_us write_kv_us attend_us window_attention_us "
        "attend_tflops torch_tflops attend_speed_over_torch whole_time_over_torch"
    )
    console.print(shown("Attention, microseconds", rows, attention.split()))
    select = [{"what": name, "value": value} for name, value in result["select"].items()]
    console.print(shown("Select", select, ["what", "value"]))
    console.print(
        shown(
            "Elementwise, microseconds", result["elementwise"], ["op", "us", "fp8_us", "torch_us", "torch_compiled_us"]
        )
    )
    console.print(shown("Targets", [vars(target) for target in targets], ["what", "wanted", "found", "met"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/kernels.json"))
    parser.add_argument("--no-compile", action="store_true", help="compare with eager torch only")
    args = parser.parse_args()
    library.load()
    torch.manual_seed(0)
    ropes: dict[str, Callable[..., Any]] = {"eager": rope_and_copy}
    if not args.no_compile:
        ropes["compiled"] = torch.compile(rope_and_copy, dynamic=False)
        torch._dynamo.config.cache_size_limit = 64
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}
    result["attention"] = [attention_row(shape, ropes) for shape in SHAPES]
    result["select"] = select_results()
    result["elementwise"] = [
        row for model in WIDTHS for rows in (128, 376) for row in elementwise_rows(model, rows, not args.no_compile)
    ]
    targets = [target for row in result["attention"] for target in attention_targets(row)]
    targets += select_targets(result["select"])
    result["targets"] = [vars(target) for target in targets]
    print_all(result, targets)
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
