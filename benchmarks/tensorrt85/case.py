"""One plan in a process of its own: built, then compared; or, with ``--times``, only timed.

``python -m benchmarks.tensorrt85.case NAME --work FOLDER --output FILE [--plugin LIBRARY]``
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tensorrt85.plans import PLANS, Plan, build, twin
from tests.support.tensorrt85.module import install

Note = Callable[[dict[str, Any]], None]


def compare(plan: Plan, args: argparse.Namespace, device: str, note: Note) -> None:
    """What the plan's source asks for."""
    from benchmarks.tensorrt85.answers import compare_answers
    from benchmarks.tensorrt85.logits import compare_logits

    if plan.source == "tiny":
        compare_answers(args.work / plan.name, twin(plan, args.work), args.problems, device, note)
    elif plan.source != "medium":
        compare_logits(plan, args.work, device, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PLANS)
    parser.add_argument("--work", type=Path, required=True, help="folder for engines")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--plugin", type=Path, help="our plugins for TensorRT 8.5")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--times", action="store_true", help="time a plan that is there")
    parser.add_argument("--rehearse", action="store_true", help="torch engines on the CPU in place of plans")
    args = parser.parse_args()
    plan, found = PLANS[args.name], {}

    def note(more: dict[str, Any]) -> None:
        found.update(more)
        args.output.write_text(json.dumps(found))  # should the rest fail

    if not args.rehearse:
        install(args.plugin)
    if args.times:
        from benchmarks.tensorrt85.timing import compare_times

        note(compare_times(plan, args.work))
        return
    backend, device = ("torch", "cpu") if args.rehearse else ("tensorrt", "cuda")
    note({"build": build(plan, args.work, backend)})
    compare(plan, args, device, note)


if __name__ == "__main__":
    main()
