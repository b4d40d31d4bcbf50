"""Triton beside ``LLM.generate``: throughput and latency of the same requests to the same engine, in one run.

``make triton && python benchmarks/triton_gpu.py --output benchmarks/results/triton_gpu.json``

The engine has a published shape and random weights. Requests are token ids, decoded by LowConfidence in a fixed number
of passes, which random weights cannot change. The two have the device one after the other; each first answers requests
in batches of every size, so that no CUDA graph is captured while it is measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.from_weights import write_engine  # noqa: E402
from d3llm_trt import LLM, BuildConfig, DecodingConfig, SamplingParams  # noqa: E402
from d3llm_trt.bench.random_engine import random_weights  # noqa: E402
from d3llm_trt.bench.report import device_name  # noqa: E402
from d3llm_trt.bench.shapes import SHAPES  # noqa: E402
from d3llm_trt.errors import D3llmError  # noqa: E402
from d3llm_trt.serving.triton.repository import RepositoryOptions, write_repository  # noqa: E402
from tests.support.triton_server import Server, open_server  # noqa: E402

ALGORITHM = "LowConfidence"
START_SECONDS, ANSWER_SECONDS = 400.0, 600.0
IDS = 1000  # prompts are made of these: neither masks nor ends
Answer = list[int]
Ask = Callable[[int], Answer]
Measured = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """What is served. ``layers`` cuts the network short; ``device`` is cuda or cpu."""

    shape: str
    layers: int | None
    quantization: str | None
    max_batch_size: int
    device: str


@dataclass(frozen=True)
class Load:
    """What is asked: requests of ``prompt`` tokens, each answered with ``generated`` tokens in ``steps`` passes."""

    requests: int
    alone: int
    prompt: int
    generated: int
    steps: int
    block_size: int
    repeats: int

    def prompt_ids(self, number: int) -> list[int]:
        """Different ones for each request."""
        return [(7 * number + 3 * position) % IDS for position in range(self.prompt)]

    def params(self) -> SamplingParams:
        """For the runtime."""
        decoding = DecodingConfig(ALGORITHM, block_size=self.block_size, steps=self.steps)
        return SamplingParams(max_tokens=self.generated, ignore_eos=True, decoding=decoding)

    def inputs(self, number: int) -> dict[str, Any]:
        """The same for Triton."""
        settings = {"algorithm": ALGORITHM, "block_size": self.block_size, "steps": self.steps}
        return {
            "input_ids": self.prompt_ids(number),
            "max_tokens": self.generated,
            "ignore_eos": True,
            **settings,
        }


@dataclass(frozen=True)
class Round:
    """All requests answered once: seconds in all, and of each request from its client's view."""

    seconds: float
    latencies: list[float]
    answers: list[Answer]


def answered_by_clients(ask: Ask, requests: int, clients: int) -> Round:
    """Each client asks again as soon as it has its answer."""

    def timed(number: int) -> tuple[float, Answer]:
        start = time.perf_counter()
        answer = ask(number)
        return time.perf_counter() - start, answer

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(timed, range(requests)))
    seconds = time.perf_counter() - begin
    return Round(seconds, [latency for latency, _ in found], [answer for _, answer in found])


def summary(rounds: Sequence[Round]) -> Measured:
    """Medians over rounds; times in seconds."""
    rates = [sum(map(len, one.answers)) / one.seconds for one in rounds]
    orders = [sorted(one.latencies) for one in rounds]
    return {
        "requests": len(rounds[0].answers),
        "seconds": statistics.median(one.seconds for one in rounds),
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_of_each": rates,
        "latency_median": statistics.median(map(statistics.median, orders)),
        "latency_p95": statistics.median(order[min(int(0.95 * len(order)), len(order) - 1)] for order in orders),
    }


def measure(ask: Ask, load: Load, clients: Sequence[int], name: str) -> tuple[Measured, list[Answer]]:
    """By number of clients, and the answers that a client alone got."""
    results: Measured = {}
    alone: list[Answer] = []
    for count in clients:
        requests = load.alone if count == 1 else load.requests
        rounds = [answered_by_clients(ask, requests, count) for _ in range(load.repeats)]
        results[clients_name(count)] = summary(rounds)
        report(name, clients_name(count), results[clients_name(count)])
        alone = rounds[0].answers if count == 1 else alone
    return results, alone


def warm_up(ask: Ask, most: int) -> None:
    """Batches of every size up to ``most``, each twice: a graph is captured at the second use of its sizes."""
    for count in range(1, most + 1):
        for _ in range(2):
            answered_by_clients(ask, count, count)


def clients_name(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def report(name: str, what: str, result: Measured) -> None:
    rate, middle, late = (result[key] for key in ("tokens_per_second", "latency_median", "latency_p95"))
    print(f"{name}, {what}: {rate:.1f} tokens/s, latency {middle:.3f} s median, {late:.3f} s p95", flush=True)


def make_engine(path: Path, engine: Engine, load: Load) -> Measured:
    """Write the engine directory; the facts about where."""
    device = torch.device(engine.device)
    config, weights = random_weights(
        engine.shape, device=device, dtype=torch.bfloat16, layers=engine.layers, quantization=engine.quantization
    )
    settings = BuildConfig(
        max_batch_size=engine.max_batch_size,
        max_seq_len=load.prompt + load.generated,
        quantization=engine.quantization,
    )
    write_engine(path, config, weights, settings)
    return {"device": device_name(device), "torch": str(torch.__version__), "python": platform.python_version()}


def measure_generate(path: Path, engine: Engine, load: Load) -> tuple[Measured, list[Answer]]:
    """``LLM.generate`` in this process: all requests in one call, and clients with a thread and calls of their own."""
    if engine.device == "cpu":
        torch.set_num_threads(1)  # as many as the server has
    with LLM(path, device=engine.device) as llm:

        def generate(numbers: Sequence[int]) -> Round:
            begin = time.perf_counter()
            outputs = llm.generate([{"prompt_token_ids": load.prompt_ids(n)} for n in numbers], load.params())
            seconds = time.perf_counter() - begin
            for output in outputs:
                if output.error is not None:
                    raise output.error
            latencies = [output.metrics.latency for output in outputs]
            return Round(seconds, latencies, [output.outputs[0].token_ids for output in outputs])

        def ask(number: int) -> Answer:
            return generate([number]).answers[0]

        warm_up(ask, engine.max_batch_size)
        together = summary([generate(range(load.requests)) for _ in range(load.repeats)])
        report("LLM.generate", "one call", together)
        results, alone = measure(ask, load, (1, engine.max_batch_size), "LLM.generate")
    return {"one call": together, **results}, alone


def measure_triton(path: Path, engine: Engine, load: Load, work: Path) -> tuple[Measured, list[Answer]]:
    """The same over HTTP from a server on loopback."""
    options = RepositoryOptions(gpus=(0,) if engine.device == "cuda" else ())
    write_repository(path, work / "repository", options)
    with open_server(work / "repository", work, "--allow-gpu-metrics=false", seconds=START_SECONDS) as server:
        try:
            return measure_server(server, engine.max_batch_size, load)
        except BaseException:
            print(server.log.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise


def measure_server(server: Server, batch: int, load: Load) -> tuple[Measured, list[Answer]]:
    """By number of clients, as many as slots also with streamed answers."""
    facts = json.loads(server.get("/v2")[1])
    whole, streamed = asked_of(server, load, stream=False), asked_of(server, load, stream=True)
    warm_up(whole, batch)
    results, alone = measure(whole, load, (1, batch, 2 * batch), "Triton")
    streams, _ = measure(streamed, load, (batch,), "Triton, streamed")
    return {"version": facts["version"], **results, "streamed": streams}, alone


def asked_of(server: Server, load: Load, *, stream: bool) -> Ask:
    """A client of the server that gives up on an error."""

    def ask(number: int) -> Answer:
        inputs = load.inputs(number)
        if stream:
            events = list(server.stream(timeout=ANSWER_SECONDS, **inputs))
        else:
            events = [server.generate(timeout=ANSWER_SECONDS, **inputs)]
        ids = [token for event in events for token in _ids(event)]
        if len(ids) != load.generated:
            raise D3llmError(f"request {number} got {len(ids)} tokens for {load.generated}: {events[-1]}")
        return ids

    return ask


def _ids(event: dict[str, Any]) -> Answer:
    """Of one response; Triton writes a tensor of one value without a list."""
    ids = event.get("output_ids", [])
    return ids if isinstance(ids, list) else [ids]


def compare(generate: Measured, triton: Measured, batch: int) -> Measured:
    """What is left of throughput, and what is added to latency, with Triton."""
    many, together = clients_name(batch), "one call"

    def ratio(key: str, ours: str, theirs: str) -> float:
        return float(triton[ours][key] / generate[theirs][key])

    return {
        f"throughput, {many} over one call": ratio("tokens_per_second", many, together),
        f"throughput, {many} each": ratio("tokens_per_second", many, many),
        f"throughput, {clients_name(2 * batch)} over one call": ratio(
            "tokens_per_second", clients_name(2 * batch), together
        ),
        "throughput, 1 client each": ratio("tokens_per_second", "1 client", "1 client"),
        f"median latency, {many} each": ratio("latency_median", many, many),
        "median latency, 1 client each": ratio("latency_median", "1 client", "1 client"),
    }


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` returns; all memory of the device is free again afterwards."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def run(engine: Engine, load: Load, work: Path) -> Measured:
    """Everything, in the folder ``work``, which needs room for the engine once."""
    path = work / "engine"
    facts = in_own_process(make_engine, path, engine, load)
    print(f"{engine.shape} on {facts['device']}", flush=True)
    generate, wanted = in_own_process(measure_generate, path, engine, load)
    triton, answers = measure_triton(path, engine, load, work)
    ratios = compare(generate, triton, engine.max_batch_size)
    same = sum(answer == other for answer, other in zip(answers, wanted, strict=True))
    print(json.dumps(ratios, indent=2), flush=True)
    return {
        **facts, "engine": asdict(engine), "load": asdict(load), "algorithm": ALGORITHM, "generate": generate,
        "triton": triton, "triton_over_generate": ratios, "same_answers_alone": f"{same} of {len(wanted)}",
    }  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llada-8b")
    parser.add_argument("--layers", type=int, help="cut the network short")
    parser.add_argument("--quantization", choices=["fp8"])
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--alone", type=int, default=8, help="requests of a client alone")
    parser.add_argument("--prompt", type=int, default=120, help="tokens of a prompt")
    parser.add_argument("--generated", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--steps", type=int, default=26, help="passes of an answer, a multiple of its blocks")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for the engine's files, 16 GB for 8B; by default a new one")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parsed()
    engine = Engine(args.shape, args.layers, args.quantization, args.max_batch_size, args.device)
    load = Load(args.requests, args.alone, args.prompt, args.generated, args.steps, args.block_size, args.repeats)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        result = run(engine, load, Path(folder))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
