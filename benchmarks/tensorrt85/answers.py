"""Word problems answered by a plan and by the torch engine of its dtype, with CUDA graphs and without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.tensorrt85.plans import open_engine
from d3llm_trt import LLM, DecodingConfig, RequestOutput, SamplingParams
from examples.tiny_d3llm.check import HELDOUT_SEED
from examples.tiny_d3llm.problems import Problem, is_exact, make_problems

MAX_TOKENS = 96
# The published settings, then such that an answer takes several passes and many of them over a cache.
DECODINGS = {
    "FullAttnMultiBlock": DecodingConfig(),
    "FullAttnMultiBlock, threshold 1e-5": DecodingConfig(threshold=1e-5, block_size=16),
    "MultiBlock, cached": DecodingConfig(
        "MultiBlock", threshold=1e-6, block_size=8, cache_delay_iter=1, refresh_interval=4
    ),
}
Outputs = dict[str, list[RequestOutput]]
Note = Callable[[dict[str, Any]], None]


def compare_answers(plan: Path, twin: Path, count: int, device: str, note: Note) -> None:
    """By decoding: accuracy of both, and the shares of answers and numbers of passes that are the same.

    ``note`` is called with what is found, as soon as it is.
    """
    problems = make_problems(count, HELDOUT_SEED, "heldout")
    reference, _ = answer(twin, problems, device, "off")
    eager, seconds = answer(plan, problems, device, "off")
    for name in DECODINGS:
        found = _compared(problems, reference[name], eager[name])
        note({name: {**found, "seconds": round(seconds[name], 2)}})
    if open_engine(plan, device).spec.graph_capturable:
        note({"graphs": _captured(plan, problems, device, eager)})


def answer(
    directory: Path, problems: Sequence[Problem], device: str, cuda_graphs: str | None
) -> tuple[Outputs, dict[str, float]]:
    """All answers, and the seconds they took, by decoding."""
    chats = [[{"role": "user", "content": problem.question}] for problem in problems]
    outputs, seconds = {}, {}
    with LLM(directory, device=device, cuda_graphs=cuda_graphs, progress=lambda *_: None) as llm:
        for name, decoding in DECODINGS.items():
            start = time.monotonic()
            outputs[name] = llm.generate(chats, SamplingParams(max_tokens=MAX_TOKENS, decoding=decoding))
            seconds[name] = time.monotonic() - start
            for output in outputs[name]:
                if output.error is not None:
                    raise output.error
    return outputs, seconds


def _compared(problems: Sequence[Problem], one: list[RequestOutput], other: list[RequestOutput]) -> dict[str, Any]:
    def exact(outputs: list[RequestOutput]) -> float:
        held = [is_exact(o.outputs[0].text, p) for o, p in zip(outputs, problems, strict=True)]
        return sum(held) / len(held)

    def passes(outputs: list[RequestOutput]) -> float:
        return sum(output.metrics.num_forward_passes for output in outputs) / len(outputs)

    return {
        "problems": len(problems),
        "exact": {"torch": exact(one), "plan": exact(other)},
        "forward_passes": {"torch": passes(one), "plan": passes(other)},
        "same_answers": _same(one, other),
        "same_passes": _share(
            a.metrics.num_forward_passes == b.metrics.num_forward_passes for a, b in zip(one, other, strict=True)
        ),
    }


def _same(one: list[RequestOutput], other: list[RequestOutput]) -> float:
    """Share of answers with the same token ids."""
    return _share(a.outputs[0].token_ids == b.outputs[0].token_ids for a, b in zip(one, other, strict=True))


def _share(held: Iterator[bool]) -> float:
    listed = list(held)
    return sum(listed) / len(listed)


def _captured(plan: Path, problems: Sequence[Problem], device: str, eager: Outputs) -> dict[str, Any]:
    """The same answers by replayed graphs."""
    with counted_replays() as replays:
        captured, seconds = answer(plan, problems, device, "all")
    return {
        "same_answers_as_eager": {name: _same(eager[name], captured[name]) for name in DECODINGS},
        "replays": len(replays),
        "graphs": len(set(replays)),
        "seconds": {name: round(taken, 2) for name, taken in seconds.items()},
    }


@contextmanager
def counted_replays() -> Iterator[list[int]]:
    """The graph of every replay meanwhile."""
    replays: list[int] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(id(graph))
        replay(graph)

    torch.cuda.CUDAGraph.replay = counted
    try:
        yield replays
    finally:
        torch.cuda.CUDAGraph.replay = replay
