"""Tokens per second by which positions a pass computes: no cache, a cache, and windows at both ends; one GPU, 8B shape.

``python benchmarks/windows.py --output benchmarks/results/windows.json``

Random weights of LLaDA-8B's shape, everything included, acceptance simulated. A mode changes the tokens of real
weights: how much, ``docs/decoding.md`` says.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

import torch

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.bench.measure import measure
from d3llm_trt.bench.random_engine import random_engine
from d3llm_trt.bench.simulated import SimulatedAcceptance

ANSWER = 256
MODES: dict[str, dict[str, Any]] = {
    "no cache": {},
    "delay 0": {"cache_delay_iter": 0},
    "delay 1": {"cache_delay_iter": 1},
    "delay 1, no full settling": {"cache_delay_iter": 1, "full_settling": False},
    "delay 0, 0 ahead": {"cache_delay_iter": 0, "window_ahead": 0},
    "delay 0, 1 ahead": {"cache_delay_iter": 0, "window_ahead": 1},
    "delay 0, 2 ahead": {"cache_delay_iter": 0, "window_ahead": 2},
    "delay 1, no full settling, 1 ahead": {"cache_delay_iter": 1, "full_settling": False, "window_ahead": 1},
    "delay 1, no full settling, 1 ahead, refresh 8": {
        "cache_delay_iter": 1, "full_settling": False, "window_ahead": 1, "refresh_interval": 8,
    },
}  # fmt: skip
# Batch, prompt, tokens per pass.
CASES = ((1, 120, 9.91), (1, 1000, 9.91), (1, 120, 4.8), (8, 120, 9.91))


def rows(quantization: str | None, cases: tuple[tuple[int, int, float], ...], runs: int) -> list[dict[str, Any]]:
    """A row per case and mode in one precision."""
    engine = random_engine(
        "llada-8b", device=torch.device("cuda"), max_batch_size=8, max_seq_len=1280, quantization=quantization
    )
    results = []
    for batch, prompt, rate in cases:
        with LLM.over(SimulatedAcceptance(engine, rate)) as llm:
            for mode, settings in MODES.items():
                decoding = DecodingConfig("MultiBlock", threshold=0.5, **settings)
                params = SamplingParams(max_tokens=ANSWER, ignore_eos=True, decoding=decoding)
                measured = measure(llm, batch, prompt, params, runs)
                row = {
                    "precision": quantization or "bfloat16",
                    "prompt": prompt,
                    "batch": batch,
                    "tpf": rate,
                    "mode": mode,
                }
                row |= {
                    "tokens_per_second": round(measured.tokens_per_second, 1),
                    "tokens_per_forward": round(measured.tokens_per_forward, 2),
                    "ms_per_pass": round(measured.seconds_per_pass * 1e3, 3),
                }
                results.append(row)
                print(json.dumps(row), flush=True)
    del engine
    gc.collect()
    torch.cuda.empty_cache()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__), "rows": []}
    for quantization in (None, "fp8"):
        results["rows"] += rows(quantization, CASES, arguments.runs)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
