"""Rows of logits to sample from, what float64 says of them, and the choice of tokens by the kernel's host build."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from d3llm_trt.plugins.c_structs import SelectParams
from d3llm_trt.plugins.gumbel import SampleKeys
from d3llm_trt.plugins.nucleus import Limits
from d3llm_trt.plugins.reference import Selected, select
from d3llm_trt.plugins.state_fields import END_IDS

TEMPERATURES = (0.0, 1.0, 0.7, 0.01, 3.0, 1e-6, 1e10, 1e-30, 3e38, 2.0**-126)
TOP_K = (0, 0, 1, 2, 5, 50, 900, 3000, 10**9)
TOP_P = (1.0, 1.0, 0.9, 0.5, 0.1, 1e-9, 0.999999, 0.3)
KINDS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "normal": lambda rows, vocab, dice: _normal(rows, vocab, dice) * 8 * torch.rand(rows, 1, generator=dice),
    "flat": lambda rows, vocab, dice: _normal(rows, 1, dice).repeat(1, vocab),
    "few values": lambda rows, vocab, dice: torch.randint(3, (rows, vocab), generator=dice).float(),
    "bfloat16": lambda rows, vocab, dice: (_normal(rows, vocab, dice) * 3 - 10).bfloat16().float(),
    "neighbours": lambda rows, vocab, dice: 1 + torch.randint(50, (rows, vocab), generator=dice) * 2.0**-23,
    "peaked": lambda rows, vocab, dice: _normal(rows, vocab, dice) + 30 * torch.eye(rows, vocab),
    "half out": lambda rows, vocab, dice: _normal(rows, vocab, dice).index_fill(
        1, torch.arange(0, vocab, 2), -torch.inf
    ),
}


def _normal(rows: int, vocab: int, dice: torch.Generator) -> Tensor:
    return torch.randn(rows, vocab, generator=dice)


@dataclass(frozen=True)
class Sampling:
    """Logits ``[R, vocab]`` and all that select needs to sample from them."""

    logits: Tensor
    mask_id: int
    keys: SampleKeys
    limits: Limits
    barred: Tensor

    @classmethod
    def random(cls, kind: str, rows: int, vocab: int, dice: torch.Generator) -> Sampling:
        """Any temperatures and limits; some rows have barred ids."""

        def drawn(most: int, *shape: int) -> Tensor:
            return torch.randint(most, shape or (rows,), generator=dice)

        temperature = torch.tensor(TEMPERATURES)[drawn(len(TEMPERATURES))]
        limits = Limits(torch.tensor(TOP_K)[drawn(len(TOP_K))], torch.tensor(TOP_P).double()[drawn(len(TOP_P))])
        barred = torch.full((rows, END_IDS), -1)
        if vocab > 20:
            barred[::3, :2] = drawn(vocab, len(barred[::3]), 2)
        keys = SampleKeys(temperature, drawn(1 << 62), drawn(500), drawn(50))
        return cls(KINDS[kind](rows, vocab, dice).contiguous(), int(drawn(vocab, 1)), keys, limits, barred)

    def on(self, device: str) -> Sampling:
        """The same elsewhere."""

        def moved(part: SampleKeys | Limits) -> dict[str, Tensor]:
            return {item.name: getattr(part, item.name).to(device) for item in fields(part)}

        keys, limits = replace(self.keys, **moved(self.keys)), replace(self.limits, **moved(self.limits))
        return Sampling(self.logits.to(device), self.mask_id, keys, limits, self.barred.to(device))

    def selected(self) -> Selected:
        """By the tensor code."""
        eps = torch.full_like(self.keys.temperature, 1e-12)
        return select(self.logits, self.mask_id, eps, self.keys, self.limits, self.barred)

    def differences(self, greedy: Tensor, sampled: Tensor) -> list[str]:
        """Rows where other tokens were chosen than by the tensor code, with what is special about them."""
        wanted = self.selected()
        unequal = (greedy.cpu() != wanted.greedy) | (sampled.cpu() != wanted.sampled)
        return [
            f"row {row}: temperature {self.keys.temperature[row]:g}, top_k {self.limits.top_k[row]}, top_p "
            f"{self.limits.top_p[row]:g}, barred {self.barred[row].tolist()}: {int(greedy[row])}, {int(sampled[row])}; "
            f"wanted {int(wanted.greedy[row])}, {int(wanted.sampled[row])}"
            for row in unequal.nonzero().flatten().tolist()
        ]


@dataclass(frozen=True)
class HostSelect:
    """Chooses tokens by the host build, with a team of ``threads``."""

    library: ctypes.CDLL
    threads: int = 1

    def __call__(self, given: Sampling) -> tuple[Tensor, Tensor]:
        rows, vocab = given.logits.shape
        greedy, sampled = torch.full((rows,), -7), torch.full((rows,), -7)
        inputs = {"logits": given.logits, **vars(given.keys), **vars(given.limits), "barred": given.barred}
        params = SelectParams(
            rows=rows,
            vocab_size=vocab,
            row_stride=vocab,
            mask_id=given.mask_id,
            greedy=greedy.data_ptr(),
            sampled=sampled.data_ptr(),
            **{name: tensor.data_ptr() for name, tensor in inputs.items()},
        )
        assert self.library.d3llm_select_host(ctypes.byref(params), self.threads) == 0
        return greedy, sampled


def exact_probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Of the tokens of one row ``[vocab]``, in float64: softmax at the temperature, then top_k, then top_p."""
    p = (logits.double() / temperature).softmax(0)
    order = p.argsort(descending=True, stable=True)
    rank = torch.arange(len(p))
    kept = rank < (top_k or len(p))
    share = p[order] * kept / (p[order] * kept).sum()
    kept &= share.cumsum(0) - share < top_p - 1e-12
    left = torch.zeros_like(p).scatter(0, order, p[order] * kept)
    return left / left.sum()


def chi_square_excess(counts: Tensor, probabilities: Tensor) -> float:
    """How many standard deviations the statistic lies over its mean; infinite if what cannot be drawn was drawn.

    Tokens that are expected fewer than 10 times count as one.
    """
    expected = probabilities * int(counts.sum())
    if bool((counts[probabilities == 0] > 0).any()):
        return math.inf
    rare = expected < 10
    observed = torch.cat((counts[~rare].double(), counts[rare].sum()[None].double()))
    expected = torch.cat((expected[~rare], expected[rare].sum()[None]))
    known = expected > 0
    statistic = ((observed - expected)[known].square() / expected[known]).sum()
    freedom = max(1, int(known.sum()) - 1)
    return float((statistic - freedom) / math.sqrt(2 * freedom))
