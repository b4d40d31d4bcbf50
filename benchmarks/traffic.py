"""Random traffic on one LLM: nothing stuck, lost, leaked, wrongly accepted or refused, and answers as if asked alone.

``python benchmarks/traffic.py --seconds 600 --batch-size 16 --device cuda --dtype bfloat16 --output traffic.json``

Clients of every kind (``submit`` with sinks, ``generate``, ``generate_stream``, ``generate_async``) keep about thirty
requests under way on a tiny trained checkpoint; some are left early, and some are bad. What they ask follows from the
seed alone. Then a sample of the answers is asked for again, one at a time: they must be the same, but in a dtype
narrower than float32 for ties, since another batch means other matrix products and other last bits. Exit code 1 if
anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.random_traffic.alone import ROUNDING, compare  # noqa: E402
from benchmarks.random_traffic.clients import Clients  # noqa: E402
from benchmarks.random_traffic.ledger import SILENT_WITHIN, Ledger  # noqa: E402
from benchmarks.random_traffic.memory import Sample, amounts, growth  # noqa: E402
from d3llm_trt import LLM, BuildConfig, build_engine  # noqa: E402
from tests.support.tiny_models import CHECKPOINTS  # noqa: E402

LIMIT = 512  # positions of a request
SAMPLED_EVERY, PRINTED_EVERY = 2.0, 10  # seconds, samples


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build an engine, let clients use it, look at what is left, and ask again; the report."""
    ledger = Ledger(options.compare)
    handler = logging.Handler(logging.WARNING)  # none belongs to sound traffic
    handler.emit = lambda record: ledger.problem("warning", None, record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("d3llm_trt").addHandler(handler)
    config = BuildConfig(
        dtype=options.dtype,
        max_batch_size=options.batch_size,
        max_seq_len=LIMIT,
        max_num_tokens=LIMIT * max(options.batch_size // 2, 1),  # so that requests also wait for room
        quantization=options.quantization,
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = build_engine(CHECKPOINTS[options.family], Path(folder) / "engine", config)
        with LLM(directory, device=options.device, cuda_graphs=options.cuda_graphs) as llm:
            samples = drive(llm, ledger, options)
            check_idle(llm, ledger)
            memory = check_memory(samples, ledger, options)
            print(f"{len(ledger.kept)} answers are asked for again alone", flush=True)
            rounding = ROUNDING[options.quantization or options.dtype]
            compared = compare(llm, directory, ledger, rounding, options.stuck_after)
            device = llm.spec.device
    return {
        "passed": not ledger.problems,
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "counts": dict(ledger.counts),
        "by_kind": dict(sorted(ledger.kinds.items())),
        "slowest_seconds": ledger.slowest,
        "problems": dict(ledger.problems),
        "problem_details": ledger.details,
        "compared_alone": compared,
        "memory": memory,
        "samples": samples,
    }


def drive(llm: LLM, ledger: Ledger, options: argparse.Namespace) -> list[Sample]:
    """Let clients ask until the time is over and everything is answered or given up."""
    begin, samples = time.perf_counter(), list[Sample]()
    until = begin + options.seconds
    threads = Clients(llm, ledger, options.seed, until).start()
    while any(thread.is_alive() for thread in threads) and (time.perf_counter() < until or ledger.open):
        time.sleep(min(SAMPLED_EVERY, options.seconds / 40))
        now = time.perf_counter() - begin
        samples.append({"seconds": now, "answered": ledger.counts["answered"], **amounts(llm.spec.device)})
        ledger.declare_stuck(options.stuck_after)
        if len(samples) % PRINTED_EVERY == 0:
            print(f"{now:5.0f} s: {dict(ledger.counts)}, {len(ledger.open)} in flight", flush=True)
    for thread in threads:
        thread.join(5)
    return samples


def check_idle(llm: LLM, ledger: Ledger) -> None:
    """Nothing may be left behind by what was answered or cancelled."""
    deadline = time.perf_counter() + SILENT_WITHIN
    while llm.load != (0, 0) and time.perf_counter() < deadline:
        time.sleep(0.01)
    if llm.load != (0, 0) or not llm.healthy:
        ledger.problem("not idle and healthy", None, (llm.load, llm.healthy))


def check_memory(samples: Sequence[Sample], ledger: Ledger, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """It may not grow, but on a CPU in a narrow dtype: oneDNN keeps code for every shape there."""
    memory = growth(samples, options.seconds)
    keeps_code = options.device.startswith("cpu") and options.dtype != "float32"
    for name, facts in memory.items():
        if not facts["flat"] and not (keeps_code and name == "rss"):
            ledger.problem(f"{name} grows", None, facts)
    return memory


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--quantization", choices=["fp8"])
    parser.add_argument("--family", choices=sorted(CHECKPOINTS), default="llada")
    parser.add_argument("--cuda-graphs", choices=["all", "largest", "off"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", type=int, default=300, help="answers at most that are asked for again alone")
    parser.add_argument("--stuck-after", type=float, default=60, help="seconds")
    parser.add_argument("--output", type=Path, default=Path("traffic.json"))
    options = parser.parse_args()
    report = run(options)
    options.output.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    shown = ("counts", "slowest_seconds", "compared_alone", "memory", "problems", "passed")
    print(json.dumps({name: report[name] for name in shown}, indent=1))
    raise SystemExit(not report["passed"])


if __name__ == "__main__":
    main()
