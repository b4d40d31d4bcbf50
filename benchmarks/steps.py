"""Whole steps, and whole answers, of the published shapes with random weights on one GPU, against torch and targets.

``python benchmarks/steps.py --output benchmarks/results/steps.json``

A step is everything: windows, forward pass, head on the candidates, select, commit. Its time is wall time, host
included, and ``graph`` that of its CUDA graph on the GPU. From a profile, which slows the GPU down a little: ``busy``
is the time in which a kernel runs, ``products`` that of the matrix products alone. ``steps`` and ``answers`` are in
bfloat16; the same of engines in FP8 is under ``fp8``, where the GPU has it.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.bench.measure import measure, profiled
from d3llm_trt.bench.peers import peer_seconds
from d3llm_trt.bench.random_engine import random_engine, random_weights
from d3llm_trt.bench.simulated import SimulatedAcceptance
from d3llm_trt.gpus import OLDEST_FOR
from d3llm_trt.runtime.decoder import Decoder
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.stepping.factory import make_stepper

PROMPT, ANSWER, RATE = 120, 256, 9.91
SETTLED, TIMED, PROFILED = 4, 30, 10  # steps


@dataclass(frozen=True)
class Case:
    """One kind of step and the most milliseconds it may take on an H200, in bfloat16 and in FP8."""

    name: str
    shape: str
    batch: int
    prompt: int
    answer: int
    target_ms: float
    fp8_target_ms: float
    cached: bool = False


CASES = (
    Case("LLaDA, batch 1, 376 tokens, 256 candidates", "llada-8b", 1, PROMPT, ANSWER, 9.3, 5.8),
    Case("LLaDA, batch 4, 4 x 376 tokens", "llada-8b", 4, PROMPT, ANSWER, 37.0, 21.0),
    Case("LLaDA, batch 1, window of 128 over 248 cached", "llada-8b", 1, 248, 128, 5.0, 3.0, cached=True),
    Case("Dream, batch 1, 376 tokens, 256 candidates", "dream-7b", 1, PROMPT, ANSWER, 9.0, 5.6),
)


def step_times(engine: Engine, case: Case) -> dict[str, object]:
    """Median wall milliseconds of a step, and where its GPU time goes."""
    name = "MultiBlock" if case.cached else "FullAttnMultiBlock"
    cached = {"cache_delay_iter": 1} if case.cached else {}
    # One block and no threshold that random weights pass: every pass commits a forced token or two.
    decoding = DecodingConfig(name, block_size=case.answer, threshold=1e-9, early_stop=False, **cached)
    decoder, slots = Decoder(make_stepper(engine)), list(range(case.batch))
    for slot in slots:
        params = SamplingParams(max_tokens=case.answer, decoding=decoding)
        decoder.admit(slot, [5 + index for index in range(case.prompt)], params)
    for _ in range(SETTLED):
        decoder.step(slots)
    times = []
    with timed_replays() as replays:
        for _ in range(TIMED):
            start = time.perf_counter()
            reports = decoder.step(slots)
            times.append(time.perf_counter() - start)
    spent = profiled(lambda: _steps(decoder, slots, PROFILED))
    kinds = {kind: seconds / PROFILED * 1e3 for kind, seconds in spent.by_class.items()}
    return {
        "milliseconds": statistics.median(times) * 1e3,
        "graph": statistics.median(start.elapsed_time(end) for start, end in replays),
        "target_ms_h200": case.fp8_target_ms if engine.spec.quantization else case.target_ms,
        "busy": spent.busy / PROFILED * 1e3,
        "products": kinds.get("matrix products", 0.0),
        "kernels": kinds,
        "window_tokens": sum(report.window_tokens for report in reports),
    }


@contextmanager
def timed_replays() -> Iterator[list[tuple[torch.cuda.Event, torch.cuda.Event]]]:
    """Marks on the stream before and after every replay of a CUDA graph."""
    replays: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    replay = torch.cuda.CUDAGraph.replay

    def timed(graph: torch.cuda.CUDAGraph) -> None:
        marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        marks[0].record()
        replay(graph)
        marks[1].record()
        replays.append(marks)

    torch.cuda.CUDAGraph.replay = timed
    try:
        yield replays
    finally:
        torch.cuda.CUDAGraph.replay = replay


def _steps(decoder: Decoder, slots: Sequence[int], count: int) -> None:
    for _ in range(count):
        decoder.step(slots)


def answers(engine: Engine, runs: int) -> list[dict[str, object]]:
    """Tokens per second through ``LLM.generate`` with acceptance simulated at the published rate; cached ones in
    bfloat16 only.
    """
    found: list[dict[str, object]] = []
    plain = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    with LLM.over(SimulatedAcceptance(engine, RATE)) as llm:
        for batch in (1, 4, 8):
            found.append({"what": f"batch {batch}", **asdict(measure(llm, batch, PROMPT, plain, runs))})
        if engine.spec.quantization:
            return found
        for name, cached in (("no cache", {}), ("cache, delay 2", {"cache_delay_iter": 2})):
            params = SamplingParams(
                max_tokens=ANSWER, ignore_eos=True, decoding=DecodingConfig("MultiBlock", threshold=0.5, **cached)
            )
            found.append({"what": f"MultiBlock, {name}", **asdict(measure(llm, 1, 1000, params, runs))})
    return found


def engines_measured(quantization: str | None) -> dict[str, object]:
    """Steps of every case, and answers, in one precision."""
    device, precision = torch.device("cuda"), quantization or "bfloat16"
    results: dict[str, object] = {}
    steps: dict[str, object] = {}
    for shape in dict.fromkeys(case.shape for case in CASES):
        engine = random_engine(shape, device=device, max_batch_size=8, max_seq_len=1280, quantization=quantization)
        for case in CASES:
            if case.shape == shape:
                steps[case.name] = step_times(engine, case)
                print(precision, case.name, json.dumps(steps[case.name]), flush=True)
        if shape == "llada-8b":
            results["answers"] = answers(engine, 3)
            print(precision, json.dumps(results["answers"], indent=1), flush=True)
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    return results | {"steps": steps}


def run(output: Path) -> None:
    """Measure everything and write it to ``output``."""
    device = torch.device("cuda")
    results: dict[str, object] = {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}
    results |= engines_measured(None)
    if torch.cuda.get_device_capability() >= OLDEST_FOR["fp8"]:
        results["fp8"] = engines_measured("fp8")
    config, weights = random_weights("llada-8b", device=device, dtype=torch.bfloat16)
    results["peer_seconds"] = peer_seconds(config, weights, PROMPT + ANSWER, ANSWER)
    print(results["peer_seconds"])
    output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("steps.json"))
    run(parser.parse_args().output)
