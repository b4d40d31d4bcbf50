"""Load on a real server on loopback: one client, then many, on the tiny checkpoint on the CPU.

``make triton && python benchmarks/triton_load.py --instances 2 --max-batch-size 8 --output triton_load.json``
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from d3llm_trt import BuildConfig, build_engine  # noqa: E402
from d3llm_trt.serving.triton.repository import RepositoryOptions, write_repository  # noqa: E402
from examples.tiny_d3llm.problems import is_exact, make_problems  # noqa: E402
from tests.support.tiny_models import CHECKPOINTS  # noqa: E402
from tests.support.triton_server import Server, open_server  # noqa: E402

ALGORITHMS = ("FullAttnMultiBlock", "LowConfidence")


def measure(server: Server, clients: int, requests: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Answer ``requests`` problems of mixed lengths with ``clients`` at a time."""
    problems = make_problems(requests, 100, "heldout")

    def ask(number: int) -> tuple[float, dict[str, Any]]:
        chat = [{"role": "user", "content": problems[number].question}]
        start = time.perf_counter()
        answer = server.generate(messages=json.dumps(chat), max_tokens=64 + number % 64, timeout=300, **settings)
        return time.perf_counter() - start, answer

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(requests)))
    seconds = time.perf_counter() - begin
    times = sorted(latency for latency, _ in answers)
    exact = sum(is_exact(answer["text_output"], p) for (_, answer), p in zip(answers, problems, strict=True))
    return {
        "clients": clients,
        "requests": requests,
        "answered": sum("text_output" in answer for _, answer in answers),
        "exact": exact / requests,
        "seconds": seconds,
        "requests_per_second": requests / seconds,
        "latency_median": statistics.median(times),
        "latency_p95": times[int(0.95 * len(times))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="auto", help="of the engine")
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    asked = {name: getattr(args, name) for name in ("max_batch_size", "dtype", "instances")}
    result: dict[str, Any] = {"checkpoint": "tiny-d3llm-llada", **asked}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        config = BuildConfig(dtype=args.dtype, max_batch_size=args.max_batch_size)
        write_repository(
            build_engine(CHECKPOINTS["llada"], work / "engine", config),
            work / "r",
            RepositoryOptions(instances=args.instances, max_queue_size=600),
        )
        for name in args.algorithms:
            settings = {"algorithm": name}
            with open_server(work / "r", work) as server:
                one = measure(server, 1, max(args.requests // 10, 1), settings)
                many = measure(server, args.clients, args.requests, settings)
                healthy = server.get("/v2/health/ready")[0] == 200
            ratio = many["requests_per_second"] / one["requests_per_second"]
            result[name] = {"one": one, "many": many, "throughput_ratio": ratio, "healthy_afterwards": healthy}
            alone, together = one["requests_per_second"], many["requests_per_second"]
            print(f"{name}: {alone:.1f}/s alone, {together:.1f}/s together: {ratio:.2f}x")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
