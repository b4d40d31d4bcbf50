"""Asking again, one request at a time: the answers must be the same, but for ties where rounding depends on company.

A difference comes of a tie if noise on the logits, no larger than rounding may be, makes the first decision in which
the answers differ come out the other way. Such noise does not make a wrong token.
"""

from __future__ import annotations

import itertools
import math
import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_traffic.answers import independent
from benchmarks.random_traffic.ledger import MOST_DETAILS, Ledger
from benchmarks.random_traffic.requests import Ask
from d3llm_trt import LLM, RequestOutput
from d3llm_trt.manifest import load_manifest
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch
from d3llm_trt.runtime.loading import load_engine

# Standard deviations that rounding may amount to, as shares of the largest logit.
ROUNDING = {"fp8": 2.0**-5, "bfloat16": 2.0**-6, "float16": 2.0**-9, "float32": 0.0}
SHARES, DRAWS = (1 / 64, 1 / 16, 1 / 4, 1), 8

Decision = dict[str, int | None]


def compare(llm: LLM, directory: Path, ledger: Ledger, rounding: float, stuck_after: float) -> dict[str, Any]:
    """Ask for the kept answers again, and explain those that differ."""
    engine = load_engine(directory, load_manifest(directory), device=llm.spec.device, max_batch_size=1)
    differences: list[dict[str, Any]] = []
    for ask, together, alone in _different(llm, ledger, stuck_after):
        decision = first_decision(together, alone)
        noise = deciding_noise(engine, llm, ask, alone, decision, rounding) if decision and rounding else None
        # Passes and filled-in prompts also tell of ties in places that the answer does not show.
        if rounding == 0 or noise == math.inf or (noise is None and together.outputs != alone.outputs):
            ledger.problem("different alone", ask, (noise, together, alone))
        differences.append({**ask.described(), **decision, "noise": noise})
    noises = [difference["noise"] for difference in differences]
    return {
        "asked": len(ledger.kept),
        "equal": len(ledger.kept) - len(differences),
        "different": len(differences),
        "explaining_noise": rounding,
        "explained": sum(noise is not None and noise <= rounding for noise in noises),
        "not_repeatable": noises.count(None),
        "largest_noise": max((noise for noise in noises if noise is not None), default=None),
        "differences": differences[:MOST_DETAILS],
    }


def _different(llm: LLM, ledger: Ledger, stuck_after: float) -> Iterator[tuple[Ask, RequestOutput, RequestOutput]]:
    for _, _, ask, together in ledger.kept:
        outputs = queue.SimpleQueue[RequestOutput]()
        llm.submit(ask.prompt, ask.params, outputs.put)
        try:
            alone = independent(outputs.get(timeout=stuck_after))
        except queue.Empty:
            ledger.problem("stuck alone", ask)
            return
        if alone != together:
            yield ask, together, alone


def first_decision(together: RequestOutput, alone: RequestOutput) -> Decision:
    """The pass and the place where tokens first differ, if they do; a token is None if that pass did not commit it."""
    answers = [output.outputs[0] for output in (together, alone)]
    sides = [zip(answer.commit_steps, answer.token_ids, strict=True) for answer in answers]
    pairs = enumerate(zip(*sides, strict=False))
    found = [(min(pair)[0], place, *pair) for place, pair in pairs if pair[0] != pair[1]]
    if not found:
        return {}
    number, place, *pair = min(found)
    tokens = [token if step == number else None for step, token in pair]
    return {"pass": number, "place": place, "token_together": tokens[0], "token_alone": tokens[1]}


def deciding_noise(
    engine: Engine, llm: LLM, ask: Ask, alone: RequestOutput, decision: Decision, rounding: float
) -> float:
    """The least noise up to ``rounding`` that turns the decision alone into the one together; infinite if none does."""
    for share, seed in itertools.product(SHARES, range(DRAWS)):
        with LLM.over(Disturbed(engine, decision["pass"], share * rounding, seed), llm.tokenizer) as disturbed:
            if first_decision(disturbed.generate([ask.prompt], ask.params)[0], alone) == decision:
                return share * rounding
    return math.inf


class Disturbed:
    """An engine whose ``number``-th pass has noise on its logits, ``noise`` times as large as the largest of them."""

    def __init__(self, engine: Engine, number: int | None, noise: float, seed: int) -> None:
        self.spec = replace(engine.spec, graph_capturable=False)
        self._engine, self._number, self._noise, self._passes = engine, number, noise, itertools.count(1)
        self._generator = torch.Generator(engine.spec.device).manual_seed(seed)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """See :meth:`Engine.forward`."""
        logits = self._engine.forward(batch).float()
        if next(self._passes) != self._number:
            return logits
        normal = torch.randn(logits.shape, generator=self._generator, device=logits.device)
        return logits + self._noise * logits.abs().max() * normal

    def close(self) -> None:
        """Nothing is kept."""
