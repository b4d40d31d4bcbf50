"""Requests through an LLM, timed: tokens per second, tokens per forward pass, and where a step's time goes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from d3llm_trt.errors import D3llmError
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.llm import LLM
from d3llm_trt.runtime.outputs import RequestOutput

# What kernels do, by their names; the first that fits.
KERNEL_CLASSES = (
    ("attention", "attend|write_kv|flash|fmha|sdpa"),
    ("matrix products", "gemm|cutlass|nvjet|xmma|splitk|cublas"),
    ("norm and activation", "rms_norm|silu|quantize"),
    ("select", "select"),
    ("commit and gather", "commit|gather_kernel"),
    ("copies", "memcpy|memset|copy"),
)


@dataclass(frozen=True)
class Measurement:
    """Medians over repeated runs of one batch; ``seconds`` is wall time from the first request to the last answer."""

    batch_size: int
    input_len: int
    output_len: int
    runs: int
    seconds: float
    forward_passes: float
    tokens_per_second: float
    tokens_per_forward: float
    seconds_per_pass: float


def measure(llm: LLM, batch_size: int, input_len: int, params: SamplingParams, runs: int) -> Measurement:
    """Answer ``batch_size`` prompts of ``input_len`` tokens together, ``runs`` times after one for warming up."""
    prompts = _prompts(llm, batch_size, input_len)
    _answer(llm, prompts, params)
    times, answers = [], []
    for _ in range(runs):
        start = time.perf_counter()
        answers.append(_answer(llm, prompts, params))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    tokens = statistics.median(sum(len(output.outputs[0].token_ids) for output in outputs) for outputs in answers)
    passes = statistics.median(max(output.metrics.num_forward_passes for output in outputs) for outputs in answers)
    return Measurement(
        batch_size=batch_size,
        input_len=input_len,
        output_len=params.num_tokens,
        runs=runs,
        seconds=seconds,
        forward_passes=passes,
        tokens_per_second=tokens / seconds,
        tokens_per_forward=tokens / batch_size / passes,
        seconds_per_pass=seconds / passes,
    )


def kernel_seconds(llm: LLM, batch_size: int, input_len: int, params: SamplingParams) -> dict[str, float]:
    """Seconds that the GPU spends in each class of kernels while one batch is answered."""
    prompts = _prompts(llm, batch_size, input_len)
    return profiled(lambda: _answer(llm, prompts, params)).by_class


@dataclass(frozen=True)
class GpuTime:
    """Seconds of the GPU: by class of kernels, the largest first, and those in which any kernel ran.

    Kernels overlap where one starts before the one before it has ended, so the classes may add up to more.
    """

    by_class: dict[str, float]
    busy: float


def profiled(run: Callable[[], object]) -> GpuTime:
    """What the GPU does during ``run``."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    seconds: dict[str, float] = {}
    for event in profile.key_averages():
        fitting = (name for name, pattern in KERNEL_CLASSES if re.search(pattern, event.key, re.IGNORECASE))
        kind = next(fitting, "other")
        seconds[kind] = seconds.get(kind, 0.0) + event.self_device_time_total / 1e6
    ranges = [event.time_range for event in profile.events() if event.device_type.name == "CUDA"]
    busy = covered((kernel.start, kernel.end) for kernel in ranges) / 1e6
    return GpuTime(dict(sorted(seconds.items(), key=lambda item: -item[1])), busy)


def covered(ranges: Iterable[tuple[float, float]]) -> float:
    """How much of a line the ranges cover together."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _prompts(llm: LLM, count: int, length: int) -> list[dict[str, list[int]]]:
    """The same ids for all requests; none is the mask id, which would be filled in."""
    config = llm.spec.model_config
    ids = [token for token in range(min(config.vocab_size, 1000)) if token != config.mask_token_id]
    return [{"prompt_token_ids": [ids[index % len(ids)] for index in range(length)]}] * count


def _answer(llm: LLM, prompts: list[dict[str, list[int]]], params: SamplingParams) -> list[RequestOutput]:
    outputs = llm.generate(prompts, params)
    for output in outputs:
        if output.error is not None:
            raise D3llmError(f"a request of the benchmark failed: {output.error}")
    return outputs
