"""Small engines on the CPU, and requests decoded on them without a scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from d3llm_trt import SamplingParams
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.runtime.decoder import Decoder
from d3llm_trt.runtime.engines.base import Engine, EngineSpec, ForwardBatch
from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from d3llm_trt.runtime.stepping.factory import make_stepper
from d3llm_trt.runtime.stepping.policy import parse_policy
from tests.support.golden_cases import GOLDEN


def cpu_engine(checkpoint: Path, slots: int, max_seq_len: int = 512) -> TorchEngine:
    """A float32 engine over a checkpoint's packed weights."""
    opened = open_checkpoint(checkpoint)
    device = torch.device("cpu")
    spec = EngineSpec(opened.config, "torch", torch.float32, device, slots, max_seq_len, slots * max_seq_len)
    return TorchEngine(spec, dict(opened.packed_tensors()))


class TableEngine:
    """Logits from a table on the GPU: only the decoder's own work remains. ``capturable`` steps run by kernels."""

    def __init__(self, slots: int, capturable: bool = False) -> None:
        config = open_checkpoint(GOLDEN / "dream_tiny").config
        device = torch.device("cuda")
        self.spec = EngineSpec(
            config, "torch", torch.float32, device, slots, 512, slots * 512, graph_capturable=capturable
        )
        generator = torch.Generator("cuda").manual_seed(5)
        self._table = torch.randn(997, config.vocab_size, device=device, generator=generator) * 6

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits by position and token, whatever else is in the batch."""
        at = (batch.positions * 31 + batch.token_ids * 7) % 997
        return self._table[at[batch.logit_rows]]

    def close(self) -> None:
        """Nothing is kept."""


class PositionEngine:
    """Logits by the position alone, ``table[L, vocab]``, on the CPU: every pass says the same of a position."""

    def __init__(self, config: ModelConfig, table: torch.Tensor, slots: int = 4) -> None:
        length = len(table)
        self.spec = EngineSpec(config, "torch", torch.float32, torch.device("cpu"), slots, length, slots * length)
        self.table = table

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """The rows of the positions that are scored."""
        places = batch.positions[batch.logit_rows] + int(self.spec.model_config.shifted_logits)
        return self.table[places.clamp(max=len(self.table) - 1)]

    def close(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class Answer:
    """The whole canvas, the pass that committed each position, and the window's length in every pass."""

    canvas: list[int]
    commit_steps: list[int]
    windows: list[int]

    @property
    def passes(self) -> int:
        """Forward passes made."""
        return len(self.windows)


def decode(engine: Engine, requests: Sequence[tuple[Sequence[int], SamplingParams]]) -> list[Answer]:
    """Decode all requests together, each in a slot of its own, until the last one is done."""
    decoder = decoder_over(engine)
    for slot, (prompt, params) in enumerate(requests):
        decoder.admit(slot, prompt, params)
    windows: list[list[int]] = [[] for _ in requests]
    running = list(range(len(requests)))
    while running:
        for slot in running:
            windows[slot].append(decoder.reports[slot].window_tokens)
        decoder.step(running)
        running = [slot for slot in running if not decoder.reports[slot].done]
    canvases = decoder.read(range(len(requests)))
    return [Answer(*canvas, taken) for canvas, taken in zip(canvases, windows, strict=True)]


def decoder_over(engine: Engine, cuda_graphs: str | None = None) -> Decoder:
    """A decoder with the steps that ``LLM`` would give the engine."""
    return Decoder(make_stepper(engine, parse_policy(cuda_graphs)))
