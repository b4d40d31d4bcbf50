"""The plans that are built, each with a torch engine of the same dtype to compare it with."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from d3llm_trt import BuildConfig, build_engine
from d3llm_trt.config import TensorRTConfig
from d3llm_trt.manifest import load_manifest
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.loading import load_engine
from tests.support.checkpoints import make_checkpoint
from tests.support.golden_cases import GOLDEN
from tests.support.tiny_models import CHECKPOINTS

DAMAGED_WEIGHT = "layers.1.mlp.down.weight"
DAMAGED_TENSOR = "model.transformer.blocks.1.ff_out.weight"  # the same in the checkpoint


@dataclass(frozen=True)
class Plan:
    """One plan: what it is built of and for. ``buckets`` are tokens of a window (native) or a pass (plugin)."""

    name: str
    family: str
    dtype: str
    attention: str
    slots: int
    max_seq_len: int
    buckets: tuple[int, ...]
    source: str = "tiny"  # or golden, damaged, medium
    strip_weights: bool = False

    @property
    def timed(self) -> bool:
        """Whether a pass of it is timed: both families take the same time."""
        return self.family == "llada" and self.source in ("tiny", "medium")

    def settings(self, backend: str) -> BuildConfig:
        """The build settings for ``tensorrt``, or for ``torch`` in the same dtype."""
        options = TensorRTConfig(attention=self.attention, token_buckets=self.buckets, strip_weights=self.strip_weights)
        tensorrt = options if backend == "tensorrt" else None
        return BuildConfig(backend, self.dtype, self.slots, self.max_seq_len, tensorrt=tensorrt)

    def checkpoint(self, work: Path) -> Path:
        """Where its weights are; made in ``work`` if they are nowhere."""
        if self.source == "tiny":
            return CHECKPOINTS[self.family]
        golden = GOLDEN / f"{self.family}_tiny"
        if self.source == "golden":
            return golden
        made = work / f"{self.name}.checkpoint"
        if self.source == "damaged":
            return damaged_copy(golden, made, "model.safetensors", DAMAGED_TENSOR)
        return _make_medium(made, self.family)


def damaged_copy(source: Path, target: Path, file: str, tensor: str) -> Path:
    """A copy of a directory, with eight values of one weight changed."""
    shutil.copytree(source, target)
    weights = load_file(target / file)
    weights[tensor].flatten()[:8] += 0.05
    save_file(weights, target / file)
    return target


def _make_medium(path: Path, family: str) -> Path:
    """Random weights, as large as the old builder manages in minutes."""
    return make_checkpoint(
        path, family, hidden=1024, layers=2, heads=8, intermediate=3072, vocab=4096, max_positions=512, peaky=False
    )


def _plans() -> list[Plan]:
    plans = []
    for family in ("llada", "dream"):
        for dtype, attention in (("float32", "native"), ("float16", "native"), ("float16", "plugin")):
            buckets = (192,) if attention == "native" else (256, 8 * 192)
            plans.append(Plan(f"{family}-{dtype}-{attention}", family, dtype, attention, 8, 192, buckets))
        for dtype, attention in (("float32", "native"), ("float16", "plugin")):
            buckets = (512,) if attention == "native" else (512, 2048)
            name = f"golden-{family}-{dtype}-{attention}"
            plans.append(Plan(name, family, dtype, attention, 4, 512, buckets, "golden"))
    golden = next(plan for plan in plans if plan.name == "golden-llada-float32-native")
    return [
        *plans,
        replace(golden, name="damaged-llada-float32-native", source="damaged"),
        replace(golden, name="refit-llada-float32-native", strip_weights=True),
        Plan("medium-llada-float16-plugin", "llada", "float16", "plugin", 1, 512, (512,), "medium"),
    ]


PLANS = {plan.name: plan for plan in _plans()}


def build(plan: Plan, work: Path, backend: str) -> dict[str, Any]:
    """Build the plan and its twin into ``work``; says how long the plan took and how large it is."""
    checkpoint = plan.checkpoint(work)
    start = time.monotonic()
    directory = build_engine(checkpoint, work / plan.name, plan.settings(backend))
    seconds = time.monotonic() - start
    sound = GOLDEN / f"{plan.family}_tiny" if plan.source == "damaged" else checkpoint
    build_engine(sound, twin(plan, work), plan.settings("torch"))
    files = load_manifest(directory).files
    return {
        "build_seconds": round(seconds, 1),
        "bytes": {name: facts.size for name, facts in files.items() if name.startswith("rank0")},
        "slots": plan.slots,
        "max_seq_len": plan.max_seq_len,
        "token_buckets": plan.buckets,
    }


def twin(plan: Plan, work: Path) -> Path:
    """The directory of the torch engine that a plan is compared with."""
    return work / f"{plan.name}.torch"


def open_engine(directory: Path, device: str) -> Engine:
    """The engine of a directory."""
    return load_engine(directory, load_manifest(directory), device=torch.device(device))
