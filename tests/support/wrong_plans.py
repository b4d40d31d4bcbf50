"""Opens plans that are wrong in many ways, and prints what is said of each: run as a program, since one may crash.

Arguments: the engine directory whose plan and manifest are taken, and whether the lean runtime is to open them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from d3llm_trt.errors import EngineError
from d3llm_trt.manifest import PLAN_FILE, Manifest, load_manifest
from d3llm_trt.runtime.engines.tensorrt_session import open_plan
from d3llm_trt.tensorrt_module import load_tensorrt

TARGET = (8, 9)


def wrong_plans(plan: bytes) -> dict[str, bytes]:
    """A plan as it is, and damaged; TensorRT writes sizes and offsets into its first 464 bytes."""
    return {
        "as it is": plan,
        "empty": b"",
        "text": b"this is not a plan\n" * 100,
        "of another TensorRT": b"ftrt" + plan[4:],
        "a few bytes": plan[:20],
        "half": plan[: len(plan) // 2],
        "one byte more": plan + b"x",
        "no offsets": plan[:64] + bytes(400) + plan[464:],
    }


def said_of(directory: Path, lean: bool) -> Iterator[tuple[str, str]]:
    """The error of each plan; an error of another kind ends the program."""
    manifest, plan = load_manifest(directory), (directory / PLAN_FILE).read_bytes()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The plan's GPU, whatever is here: TensorRT itself must say what is wrong.
    torch.cuda.get_device_capability = lambda device=None: TARGET
    trt = load_tensorrt("tensorrt", lean=True) if lean else load_tensorrt(manifest.backend)
    manifest = replace(manifest, backend_version=trt.__version__)
    cases = [(name, manifest, data) for name, data in wrong_plans(plan).items()]
    for name, told, data in (*cases, ("of version 99.0", replace(manifest, backend_version="99.0"), plan)):
        yield name, error_of(trt, directory, told, data, device)


def error_of(trt: object, directory: Path, manifest: Manifest, data: bytes, device: torch.device) -> str:
    """What opening a directory with this plan says."""
    (directory / PLAN_FILE).write_bytes(data)
    try:
        return f"opened {open_plan(trt, directory, manifest, device)}"
    except EngineError as error:
        return str(error)


if __name__ == "__main__":
    for name, said in said_of(Path(sys.argv[1]), sys.argv[2] == "lean"):
        print("said:", json.dumps([name, said]), flush=True)
