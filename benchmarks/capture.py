"""What it takes to capture the default CUDA graphs of LLaDA-8B's shape, and a step's time by its number of tokens.

Sizes are chosen by measured products unless the cache directory has them: name an empty one by ``D3LLM_TRT_CACHE``.

``python benchmarks/capture.py --output benchmarks/results/capture.json``
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from d3llm_trt import DecodingConfig, SamplingParams
from d3llm_trt.bench.random_engine import random_engine
from d3llm_trt.gpus import OLDEST_FOR
from d3llm_trt.runtime.decoder import Decoder
from d3llm_trt.runtime.stepping.factory import make_stepper
from d3llm_trt.runtime.stepping.kernel_stepper import KernelStepper

SCORED, TIMED = 128, 5


def measured(quantization: str | None) -> dict[str, Any]:
    """Seconds and graphs of the warm-up, and milliseconds of a step of batch 1 with 128 candidates at most."""
    device = torch.device("cuda")
    engine = random_engine("llada-8b", device=device, max_batch_size=8, max_seq_len=1280, quantization=quantization)
    torch.cuda.synchronize()
    start = time.perf_counter()
    stepper = make_stepper(engine)
    assert isinstance(stepper, KernelStepper)
    decoder = Decoder(stepper)
    sizes_chosen = time.perf_counter()
    decoder.warm_up()
    captured = time.perf_counter()
    sizes = sorted({bucket.tokens for bucket in stepper.captured})
    times = {tokens: step_milliseconds(decoder, tokens) for tokens in sizes}
    return {
        "seconds": captured - sizes_chosen,
        "seconds_choosing_sizes": sizes_chosen - start,
        "graphs": len(stepper.captured),
        "step_ms_by_tokens": times,
    }


def step_milliseconds(decoder: Decoder, tokens: int) -> float:
    """Median wall time of a step."""
    scored = min(SCORED, tokens - 1)
    decoding = DecodingConfig(block_size=scored, threshold=0.0, early_stop=False)
    decoder.admit(0, [1 + index % 50 for index in range(tokens - scored)], SamplingParams(scored, decoding=decoding))
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        decoder.step([0])
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("capture.json"))
    output = parser.parse_args().output
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}
    result["bfloat16"] = measured(None)
    gc.collect()
    torch.cuda.empty_cache()
    if torch.cuda.get_device_capability() >= OLDEST_FOR["fp8"]:
        result["fp8"] = measured("fp8")
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
