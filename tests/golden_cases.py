"""The golden cases: what the published decoders did with two tiny random checkpoints, and how we ask for the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from d3llm_trt import DecodingConfig, SamplingParams
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.runtime.decoding.decoder import Decoder
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.engines.torch_engine import TorchEngine

GOLDEN = Path(__file__).parent / "golden"
NEVER_CACHED = 10_000  # a reference's "no cache"
MULTI_BLOCK = ("block_size", "threshold", "block_add_threshold", "decoded_token_threshold")


@dataclass(frozen=True)
class Case:
    """One request of ours: ``number`` is its place among the prompts of its golden case."""

    id: str
    number: int
    model: str
    prompt: list[int]
    params: SamplingParams
    generated: list[int]
    golden: dict[str, Any]

    @property
    def compared(self) -> int:
        """Generated tokens to compare: up to the first EOS if the reference stops there."""
        end = self.params.end_id
        if not self.params.decoding.early_stop or end not in self.generated:
            return len(self.generated)
        return self.generated.index(end) + 1

    @property
    def passes(self) -> int:
        """Forward passes of the reference that we make too. EntropyThreshold's last one per round is none of ours."""
        return int(self.golden["expected"]["forward_calls"]) - int(self.golden["params"].get("rounds", 0))


def read_cases() -> list[Case]:
    """Every request of every golden case whose algorithm we have."""
    cases = json.loads((GOLDEN / "decoding.json").read_text(encoding="utf-8"))["cases"]
    return [
        Case(golden["id"], number, golden["model"], prompt, params, golden["expected"]["generated"][number], golden)
        for golden in cases
        for number, prompt in enumerate(golden["prompts"])
        if (params := _params(golden, number)) is not None
    ]


def _params(golden: dict[str, Any], number: int) -> SamplingParams | None:
    given, name = golden["params"], golden["algorithm"]
    if name.startswith("sglang_full_attn_multi_block"):
        decoding = DecodingConfig("FullAttnMultiBlock", early_stop=False, **_only(given, MULTI_BLOCK))
    elif name.startswith("sglang_entropy_threshold"):
        decoding = DecodingConfig("EntropyThreshold", early_stop=False, **_only(given, MULTI_BLOCK))
    elif "generate_multi_block" in name:
        decoding = DecodingConfig("MultiBlock", **_only(given, MULTI_BLOCK), **_multi_block(given))
    elif name == "d3llm_llada.generate" or name.startswith("d3llm_dream.diffusion_generate"):
        changes = {"block_size": given["block_length"], "threshold": given["threshold"], "early_stop": False}
        steps = given.get("steps") if given["threshold"] is None else None
        decoding = DecodingConfig("LowConfidence", steps=steps, **changes)
    else:
        return None
    tokens = given.get("max_new_tokens") or given.get("gen_length") or given["rounds"] * given["block_size"]
    if isinstance(tokens, list):
        tokens = tokens[number]
    return SamplingParams(max_tokens=tokens, end_id=given.get("eos_token_id"), decoding=decoding)


def _only(given: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _multi_block(given: dict[str, Any]) -> dict[str, Any]:
    delay, refresh = given.get("cache_delay_iter"), given.get("refresh_interval")
    if delay is None or delay >= NEVER_CACHED:
        return {"early_stop": given.get("early_stop", False)}
    return {"early_stop": given.get("early_stop", False), "cache_delay_iter": delay, "refresh_interval": refresh}


@cache
def weights(model: str) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Packed float32 weights of a golden checkpoint."""
    checkpoint = open_checkpoint(GOLDEN / model)
    return checkpoint.config, dict(checkpoint.packed_tensors())


def make_engine(model: str, slots: int) -> TorchEngine:
    """A float32 engine on the CPU."""
    config, tensors = weights(model)
    spec = EngineSpec(config, "torch", torch.float32, torch.device("cpu"), slots, 512, slots * 512)
    return TorchEngine(spec, tensors)


@dataclass(frozen=True)
class Answer:
    """What our decoder did: generated ids, the pass that committed each, and the window's length in every pass."""

    generated: list[int]
    commit_steps: list[int]
    windows: list[int]

    @property
    def passes(self) -> int:
        return len(self.windows)


def decode(engine: TorchEngine, cases: Sequence[Case]) -> list[Answer]:
    """Decode all cases together, each in a slot of its own, until the last one is done."""
    decoder = Decoder(engine)
    for slot, case in enumerate(cases):
        decoder.admit(slot, case.prompt, case.params)
    windows: list[list[int]] = [[] for _ in cases]
    running = list(range(len(cases)))
    while running:
        for slot in running:
            windows[slot].append(decoder.reports[slot].window_tokens)
        decoder.step(running)
        running = [slot for slot in running if not decoder.reports[slot].done]
    answers = []
    for slot, case in enumerate(cases):
        ids, steps = (part[len(case.prompt) :] for part in decoder.read(slot))
        answers.append(Answer(ids, steps, windows[slot]))
    return answers
