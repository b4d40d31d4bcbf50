"""Step times of several source trees in turn on one GPU, so that a change is compared with what was before it.

``python benchmarks/compare_steps.py before=../before after=. --rounds 2 --output compare.json``

Each tree runs its own ``benchmarks/steps.py`` in a process of its own, and has its own cache of measured sizes. Trees
need compiled kernels in ``plugins/lib``, and where a tree is a bare copy, links from ``d3llm_trt`` to its rooms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = """
import gc, json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/benchmarks"]
import torch, steps
times = {}
for precision in (None, "fp8"):
    for shape in dict.fromkeys(case.shape for case in steps.CASES):
        device = torch.device("cuda")
        engine = steps.random_engine(shape, device=device, max_batch_size=8, max_seq_len=1280, quantization=precision)
        for case in steps.CASES:
            if case.shape == shape:
                measured = steps.step_times(engine, case)
                name = f"{precision or 'bfloat16'}, {case.name}"
                times[name] = {"milliseconds": measured["milliseconds"], "graph": measured["graph"]}
        del engine
        gc.collect()
        torch.cuda.empty_cache()
print(json.dumps(times))
"""


def step_times(tree: Path, cache: Path) -> dict[str, dict[str, float]]:
    """Median wall milliseconds and GPU milliseconds of every case of one tree."""
    environment = {**os.environ, "D3LLM_TRT_CACHE": str(cache)}
    command = [sys.executable, "-c", CODE, str(tree.resolve())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=cache)
    times: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    trees = dict(tree.split("=", 1) for tree in arguments.trees)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for name, tree in trees.items():
                cache = Path(folder) / name
                cache.mkdir(exist_ok=True)
                rounds.append({"tree": name, "round": number, "steps": step_times(Path(tree), cache)})
                arguments.output.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
