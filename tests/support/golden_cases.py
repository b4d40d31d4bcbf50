"""The golden cases: what the published decoders did with two tiny random checkpoints, and how we ask for the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d3llm_trt import DecodingConfig, SamplingParams

GOLDEN = Path(__file__).parents[1] / "golden"
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
    cache = {"cache_delay_iter": delay, "refresh_interval": refresh, "published_shift": True}
    return {"early_stop": given.get("early_stop", False), **cache}
