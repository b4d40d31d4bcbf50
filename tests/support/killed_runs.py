"""Runs of ``generate --file --output`` that are killed at random moments and resumed, until every prompt is answered.

``python -m tests.support.killed_runs`` does that with 2000 prompts and 10 kills, in about two minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from d3llm_trt import build_engine
from tests.support.command import COMMAND, answers_in, count_lines
from tests.support.tiny_models import CHECKPOINTS


def write_prompts(path: Path, count: int) -> None:
    """A file of ``count`` prompts, each with an id of its own and some with settings."""
    with path.open("w") as file:
        for index in range(count):
            row = {"id": f"q{index}", "prompt": f"Anna buys {index} pears.", "max_tokens": 4 + index % 5}
            file.write(f"{json.dumps(row)}\n")


def run_killed(args: Sequence[object], output: Path, moments: Sequence[int], seed: int = 0) -> list[int]:
    """Start the command once per moment and kill it when ``output`` has so many lines, then let it end.

    Returns the lines, whole or torn, that there were after each kill.
    """
    command, chance, found = [*COMMAND, *map(str, args)], random.Random(seed), []
    for moment in sorted(moments):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and count_lines(output) < moment:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.02))
            process.kill()
        found.append(count_lines(output))
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return found


def check_answered_once(output: Path, count: int) -> None:
    """Raise AssertionError unless ``output`` has one good answer to each prompt, in their order."""
    answers = answers_in(output)
    assert [row["index"] for row in answers] == list(range(count))
    assert [row["id"] for row in answers] == [f"q{index}" for index in range(count)]
    assert all(row["error"] is None and len(row["token_ids"]) <= 4 + row["index"] % 5 for row in answers)


def main() -> None:
    """The long run, with what there was after each kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts, output = Path(folder) / "prompts.jsonl", Path(folder) / "answers.jsonl"
        engine = build_engine(CHECKPOINTS["llada"], Path(folder) / "engine")
        write_prompts(prompts, options.prompts)
        moments = random.Random(options.seed).sample(range(options.prompts), options.kills)
        args = ["generate", engine, "--file", prompts, "--output", output, "--resume"]
        found = run_killed(args, output, moments, options.seed)
        check_answered_once(output, options.prompts)
    print(f"seed {options.seed}: {options.prompts} prompts answered once, in order; lines after each kill: {found}")


if __name__ == "__main__":
    main()
