"""All plans, each in a process of its own and several at a time, then their times one after the other.

``python -m benchmarks.tensorrt85.run --work FOLDER --output benchmarks/results/tensorrt_8.5_h100.json``
A plan that fails is listed with the end of what it printed, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.tensorrt85.plans import PLANS

LAST_CHARACTERS = 3000


def run_case(name: str, args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """The result of one process."""
    output = args.work / f"{name}{''.join(more)}.json"
    command = [sys.executable, "-m", "benchmarks.tensorrt85.case", name, "--work", args.work, "--output", output]
    command += ["--problems", str(args.problems), *more]
    command += ["--plugin", args.plugin] if args.plugin else []
    command += ["--rehearse"] if args.rehearse else []
    start = time.monotonic()
    with (args.work / f"{name}{''.join(more)}.log").open("w") as log:
        try:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=args.seconds).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {args.seconds} s"
    result = json.loads(output.read_text()) if output.exists() else {}
    if code != 0:
        result["failed"] = {"code": code, "output": _readable(Path(log.name))[-LAST_CHARACTERS:]}
        output.write_text(json.dumps(result))
    print(f"{name} {' '.join(more)}: {time.monotonic() - start:.0f} s, {json.dumps(result)}", flush=True)
    return result


def _readable(log: Path) -> str:
    """Without a warning that TensorRT 8.5 gives for every input of every profile but the first."""
    return "".join(line for line in log.open() if "getProfileDimensions" not in line)


def results(work: Path, more: str = "") -> dict[str, Any]:
    """What there is of every plan, also from earlier calls."""
    paths = {name: work / f"{name}{more}.json" for name in PLANS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for engines and logs")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--plugin", type=Path, help="our plugin for TensorRT 8.5")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=4, help="builds take turns with the GPU")
    parser.add_argument("--seconds", type=float, default=900, help="of one plan")
    parser.add_argument("--times", action=argparse.BooleanOptionalAction, default=True, help="time passes afterwards")
    parser.add_argument("--rehearse", action="store_true", help="torch engines on the CPU in place of plans")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    result: dict[str, Any] = {"device": gpu, "torch": str(torch.__version__), "python": platform.python_version()}
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda name: run_case(name, args), args.plans))
    if args.times:
        for name in args.plans:
            if PLANS[name].timed and "build" in results(args.work).get(name, {}):
                run_case(name, args, "--times")
    result["plans"] = results(args.work)
    result["milliseconds"] = results(args.work, "--times")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
