"""Batches of the golden inputs, ragged and cached, and how far an engine is from another on them."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file

from d3llm_trt.runtime.engines.base import ForwardBatch
from tests.support.golden_cases import GOLDEN


def full_batch(sequences: list[torch.Tensor], starts: list[int]) -> ForwardBatch:
    """Windows that start anywhere, every row wanted."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    total = lengths + torch.tensor(starts)
    return ForwardBatch(
        token_ids=torch.cat(sequences),
        positions=torch.cat([torch.arange(*span) for span in zip(starts, total.tolist(), strict=True)]),
        cu_window=torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        kv_lengths=total,
        slots=torch.arange(len(sequences)),
        logit_rows=torch.arange(int(lengths.sum())),
    )


@cache
def golden_batches(family: str) -> list[ForwardBatch]:
    """Four sequences of different lengths together, then a step over the cache that the second batch leaves."""
    given = load_file(GOLDEN / "logits.safetensors")
    ids = [given[f"{family}.{number}.input_ids"].flatten().long() for number in range(4)]
    whole, step = (given[f"{family}.cached.{name}_input_ids"].flatten().long() for name in ("full", "step"))
    start = len(whole) - len(step)
    cached = [full_batch([whole, ids[1]], [0, 0]), full_batch([step, ids[1]], [start, 0])]
    return [full_batch(ids, [0] * 4), *cached]


def worst_error(engine: Any, model: Any, family: str, device: str = "cpu") -> float:
    """Largest difference of the logits over the golden batches, garbage in the engine's cache."""
    engine.kv_cache.fill_(torch.nan)
    batches = [on_device(batch, device) for batch in golden_batches(family)]
    return max(float((engine.forward(batch) - model.forward(batch)).abs().max()) for batch in batches)


def on_device(batch: ForwardBatch, device: str) -> ForwardBatch:
    """The same batch elsewhere."""
    return ForwardBatch(**{item.name: getattr(batch, item.name).to(device) for item in fields(batch)})
