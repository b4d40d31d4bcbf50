"""Tokenized problems as tensors: prompt and answer, and EOS behind."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from d3llm_trt.model.config import Family
from examples.tiny_d3llm.problems import Problem
from examples.tiny_d3llm.tasks import TASKS, Task
from examples.tiny_d3llm.tokenizer import ANSWER_ENDS, END, load_tokenizer, prompt_text, special_id

SHARD = 5_000  # problems that one process makes at a time
WORKERS = 8


@dataclass(frozen=True)
class Dataset:
    """Problem n is the tokens ``ids[start[n] : start[n] + total_length[n]]``, int16, and EOS without end behind.

    ``prompt_length[N]`` and ``total_length[N]``, which ends after the answer's end token; ``eos`` is the EOS id.
    """

    ids: Tensor
    start: Tensor
    prompt_length: Tensor
    total_length: Tensor
    eos: int

    def to(self, device: torch.device) -> Dataset:
        """The same on a device."""
        return replace(self, **{name: part.to(device) for name, part in self.__dict__.items() if name != "eos"})

    def rows(self, chosen: Tensor) -> Dataset:
        """Some problems, over the same tokens."""
        parts = {name: getattr(self, name)[chosen] for name in ("start", "prompt_length", "total_length")}
        return replace(self, **parts)

    def tokens(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Ids, int64, at ``positions`` of the canvases of problems ``rows``; both of one shape."""
        total = self.total_length[rows]
        found = self.ids[self.start[rows] + torch.minimum(positions, total - 1)].long()
        return torch.where(positions < total, found, self.eos)


def make_dataset(task: Task, family: Family, problems: list[Problem]) -> Dataset:
    """Tokenize problems with the family's chat template and answer end."""
    tokenizer = load_tokenizer(task, family)
    prompts = [e.ids for e in tokenizer.encode_batch([prompt_text(family, p.question) for p in problems])]
    answers = [e.ids for e in tokenizer.encode_batch([p.answer + ANSWER_ENDS[family] for p in problems])]
    ids = np.concatenate([np.array(p + a, dtype=np.int16) for p, a in zip(prompts, answers, strict=True)])
    prompt_length = torch.tensor([len(prompt) for prompt in prompts])
    total_length = prompt_length + torch.tensor([len(answer) for answer in answers])
    start = total_length.cumsum(0) - total_length
    return Dataset(torch.from_numpy(ids), start, prompt_length, total_length, special_id(family, END))


def training_set(task: Task, family: Family, count: int, seed: int) -> Dataset:
    """At least ``count`` training problems, made by several processes; the same ones for the same seed."""
    shards = -(-count // SHARD)
    make = partial(_shard, task.name, family, min(count, SHARD))
    seeds = range(seed * 10_000, seed * 10_000 + shards)
    if shards == 1:
        return joined([make(seeds[0])])
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork")) as pool:  # before a GPU is touched
        return joined(list(pool.map(make, seeds)))


def _shard(name: str, family: Family, count: int, seed: int) -> Dataset:
    task = TASKS[name]
    return make_dataset(task, family, task.problems(count, seed, "train"))


def joined(parts: list[Dataset]) -> Dataset:
    """All problems of data sets of one family, in their order."""
    sizes = torch.tensor([0] + [len(part.ids) for part in parts]).cumsum(0)
    starts = [part.start + int(size) for part, size in zip(parts, sizes, strict=False)]
    return Dataset(
        torch.cat([part.ids for part in parts]),
        torch.cat(starts),
        torch.cat([part.prompt_length for part in parts]),
        torch.cat([part.total_length for part in parts]),
        parts[0].eos,
    )
