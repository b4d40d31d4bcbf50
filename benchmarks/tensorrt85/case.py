"""One plan in a process of its own: built, then compared; or, with ``--times``, only timed.

``python -m benchmarks.tensorrt85.case NAME --work FOLDER --output FILE [--plugin LIBRARY]``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.tensorrt85.plans import PLANS, Plan, build
from tests.support.tensorrt85.module import install


def compared(plan: Plan, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """What the plan's source asks for."""
    from benchmarks.tensorrt85.answers import compare_answers
    from benchmarks.tensorrt85.logits import compare_logits
    from benchmarks.tensorrt85.plans import twin

    if plan.source == "tiny":
        return compare_answers(args.work / plan.name, twin(plan, args.work), args.problems, device)
    return {} if plan.source == "medium" else compare_logits(plan, args.work, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PLANS)
    parser.add_argument("--work", type=Path, required=True, help="folder for engines")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--plugin", type=Path, help="our plugin for TensorRT 8.5")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--times", action="store_true", help="time a plan that is there")
    parser.add_argument("--rehearse", action="store_true", help="torch engines on the CPU in place of plans")
    args = parser.parse_args()
    plan = PLANS[args.name]
    if not args.rehearse:
        install(args.plugin)
    if args.times:
        from benchmarks.tensorrt85.timing import compare_times

        result = compare_times(plan, args.work)
    else:
        backend, device = ("torch", "cpu") if args.rehearse else ("tensorrt", "cuda")
        result = {"build": build(plan, args.work, backend)}
        args.output.write_text(json.dumps(result))  # should the rest fail
        result |= compared(plan, args, device)
    args.output.write_text(json.dumps(result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
