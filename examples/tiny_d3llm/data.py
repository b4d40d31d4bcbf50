"""Tokenized problems as tensors: prompt, answer, then EOS as far as any canvas reaches."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from d3llm_trt.model.config import Family
from examples.tiny_d3llm.network import special_id
from examples.tiny_d3llm.problems import Problem
from examples.tiny_d3llm.tokenizer import ANSWER_ENDS, END, load_tokenizer, prompt_text

MAX_CANVAS = 512
SHORT_CANVASES = tuple(range(104, 193, 8))
ALL_CANVASES = (*SHORT_CANVASES, *range(224, MAX_CANVAS + 1, 32))


@dataclass(frozen=True)
class Dataset:
    """Rows sorted by the length of prompt and answer, so that those fitting a canvas come first.

    ``ids[N, MAX_CANVAS]``; ``prompt_length[N]``; ``total_length[N]`` ends after the answer's end token;
    ``order[N]`` is each row's place in the list of problems.
    """

    ids: Tensor
    prompt_length: Tensor
    total_length: Tensor
    order: Tensor

    def to(self, device: torch.device) -> Dataset:
        """The same on a device."""
        return Dataset(*(part.to(device) for part in (self.ids, self.prompt_length, self.total_length, self.order)))

    def rows(self, chosen: Tensor) -> Dataset:
        """Some rows, which must be in ascending order."""
        parts = (self.ids, self.prompt_length, self.total_length, self.order)
        return replace(self, **dict(zip(self.__dataclass_fields__, (part[chosen] for part in parts), strict=True)))


def make_dataset(family: Family, problems: list[Problem]) -> Dataset:
    """Tokenize problems with the family's chat template and answer end."""
    tokenizer = load_tokenizer(family)
    prompts = [e.ids for e in tokenizer.encode_batch([prompt_text(family, p.question) for p in problems])]
    answers = [e.ids for e in tokenizer.encode_batch([p.answer + ANSWER_ENDS[family] for p in problems])]
    ids = np.full((len(problems), MAX_CANVAS), special_id(family, END), dtype=np.int16)
    for row, prompt, answer in zip(ids, prompts, answers, strict=True):
        row[: len(prompt) + len(answer)] = prompt + answer
    prompt_length = torch.tensor([len(prompt) for prompt in prompts])
    total_length = prompt_length + torch.tensor([len(answer) for answer in answers])
    order = torch.argsort(total_length, stable=True)
    return Dataset(torch.from_numpy(ids)[order], prompt_length[order], total_length[order], order)


class Batches:
    """Random batches: one of ``lengths`` each, rows that fit it. Draws on the CPU, gathers on the dataset's device."""

    def __init__(self, dataset: Dataset, size: int, seed: int, lengths: tuple[int, ...]) -> None:
        self._dataset = dataset
        self._size = size
        self._lengths = lengths
        self._generator = torch.Generator().manual_seed(seed)
        totals = dataset.total_length.cpu()
        self._fitting = [int(torch.searchsorted(totals, length, right=True)) for length in lengths]

    def draw(self) -> tuple[Tensor, int]:
        """Row numbers ``[size]`` on the dataset's device, and the canvas length."""
        at = int(torch.randint(len(self._lengths), (), generator=self._generator))
        rows = torch.randint(max(self._fitting[at], 1), (self._size,), generator=self._generator)
        return rows.to(self._dataset.ids.device, non_blocking=True), self._lengths[at]
