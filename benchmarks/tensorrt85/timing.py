"""How long one pass takes, by a plan and by the torch engine of its dtype, on the same batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.tensorrt85.plans import Plan, open_engine, twin
from d3llm_trt.bench.measure import profiled
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch

WARM_UP, TIMED = 20, 50


def compare_times(plan: Plan, work: Path) -> dict[str, Any]:
    """Milliseconds of a pass by shape of the batch."""
    shapes = [(1, 128)] if plan.slots == 1 else [(1, 128), (4, 128)]
    engines = {"torch": open_engine(twin(plan, work), "cuda"), "plan": open_engine(work / plan.name, "cuda")}
    if plan.max_seq_len >= 512:
        shapes = [(1, 376)]
    return {
        f"{windows} x {tokens}": {name: pass_times(engine, windows, tokens) for name, engine in engines.items()}
        for windows, tokens in shapes
    }


def pass_times(engine: Engine, windows: int, tokens: int) -> dict[str, float | None]:
    """``eager`` is wall time, ``busy`` that in which the GPU computes, ``graph`` that of a captured pass."""
    batch = full_windows(engine, windows, tokens)

    def run() -> None:
        engine.forward(batch)

    for _ in range(WARM_UP):
        run()
    return {"eager": _eager(run), "busy": _busy(run), "graph": _graph(run) if engine.spec.graph_capturable else None}


def full_windows(engine: Engine, windows: int, tokens: int) -> ForwardBatch:
    """Windows of whole canvases; half of their rows are wanted."""
    total = windows * tokens
    at = torch.arange(total, device="cuda")
    edges = torch.arange(windows + 1, device="cuda")
    return ForwardBatch(
        token_ids=at * 7 % engine.spec.model_config.vocab_size,
        positions=at % tokens,
        cu_window=edges * tokens,
        kv_lengths=torch.full((windows,), tokens, device="cuda"),
        slots=edges[:-1],
        logit_rows=at[::2].contiguous(),
    )


def _eager(run: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(TIMED):
        run()
    torch.cuda.synchronize()
    return round((time.perf_counter() - start) / TIMED * 1e3, 4)


def _busy(run: Callable[[], None]) -> float:
    def several() -> None:
        for _ in range(TIMED):
            run()

    return round(profiled(several).busy / TIMED * 1e3, 4)


def _graph(run: Callable[[], None]) -> float:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        run()
    times = []
    for _ in range(TIMED):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(statistics.median(times), 4)
