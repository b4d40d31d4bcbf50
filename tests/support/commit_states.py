"""Random states of the decoder with random selected values, and the commit logic to step them with."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from d3llm_trt import DecodingConfig, SamplingParams
from d3llm_trt.model.config import Family, ModelConfig
from d3llm_trt.plugins.commit import commit, commit_params
from d3llm_trt.plugins.decoding_state import BoundState
from d3llm_trt.plugins.state_fields import RequestProgress
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.decoding.select import Selected
from d3llm_trt.runtime.decoding.state import DecodingState, new_request
from d3llm_trt.runtime.decoding.step import TensorSizes, advance, plan_pass

VOCAB, EOS, MASK = 12, 10, 11
STOPS = (9, 4, 0)  # that requests may name beside EOS


def config_of(family: Family) -> ModelConfig:
    """A model of which only its special ids matter."""
    return ModelConfig(family, VOCAB, 8, 8, 1, 1, 1, 8, 1e-5, 1.0, 1 << 20, MASK, EOS, EOS)


# The host build


class Advance(Protocol):
    """:func:`advance`, or what stands in for it."""

    def __call__(
        self,
        config: ModelConfig,
        state: DecodingState,
        slots: Tensor,
        sizes: TensorSizes,
        chosen: Tensor,
        selected: Selected,
    ) -> Tensor:
        """Step the state; return the summary."""
        ...


@dataclass(frozen=True)
class HostCommit:
    """Steps a state by the host build, with a team of ``threads``."""

    library: ctypes.CDLL
    threads: int = 1

    def __call__(
        self,
        config: ModelConfig,
        state: DecodingState,
        slots: Tensor,
        sizes: TensorSizes,
        chosen: Tensor,
        selected: Selected,
    ) -> Tensor:
        summary = torch.full((len(slots), 5), -7)
        bound = BoundState(state.settings, state.progress)
        ids = {"mask_id": config.mask_token_id, "family": config.family}
        params = commit_params(bound, selected, slots, chosen, summary, width=sizes.width, **ids)
        assert self.library.d3llm_commit_host(ctypes.byref(params), self.threads) == 0
        return summary


@dataclass(frozen=True)
class GpuCommit:
    """Steps a state on a GPU by the kernel."""

    def __call__(
        self,
        config: ModelConfig,
        state: DecodingState,
        slots: Tensor,
        sizes: TensorSizes,
        chosen: Tensor,
        selected: Selected,
    ) -> Tensor:
        bound = BoundState(state.settings, state.progress)
        ids = {"mask_id": config.mask_token_id, "family": config.family}
        return commit(bound, selected, slots, chosen, width=sizes.width, **ids)


# Random states


@dataclass(frozen=True)
class Entry:
    """What the host knows of an occupied slot."""

    length: int
    blocks: int


@dataclass
class Workload:
    """A state with all slots occupied, and where its random numbers come from."""

    config: ModelConfig
    state: DecodingState
    entries: list[Entry]
    dice: random.Random
    generator: torch.Generator

    @classmethod
    def random(cls, family: Family, seed: int, slots: int = 64, max_seq_len: int = 96) -> Workload:
        """Requests of all algorithms before their first pass, with what earlier ones left behind their ends."""
        dice = random.Random(seed)
        requests = [_random_request(dice, max_seq_len) for _ in range(slots)]
        return cls.of_requests(family, requests, dice, max_seq_len)

    @classmethod
    def of_requests(
        cls,
        family: Family,
        requests: Sequence[tuple[list[int], SamplingParams]],
        dice: random.Random,
        max_seq_len: int,
    ) -> Workload:
        """These requests before their first pass, one a slot."""
        config = config_of(family)
        state = DecodingState.empty(len(requests), max_seq_len, torch.device("cpu"))
        entries = []
        for slot, (prompt, params) in enumerate(requests):
            settings, progress = new_request(config, prompt, params)
            state.admit(slot, settings, progress)
            entries.append(Entry(progress.canvas.shape[1], progress.active.shape[1]))
        work = cls(config, state, entries, dice, torch.Generator().manual_seed(dice.getrandbits(32)))
        work._leave_remains()
        work._plan()
        return work

    def _leave_remains(self) -> None:
        """Anything may stand behind a request's end but candidates."""
        remains = {"canvas": VOCAB, "commit_steps": 5, "logprobs": 7, "active": 2, "block_cached": 2, "done_pass": 5}
        for name, values in remains.items():
            rows = getattr(self.state.progress, name)
            for slot, entry in enumerate(self.entries):
                tail = rows[slot, entry.length if name in ("canvas", "commit_steps", "logprobs") else entry.blocks :]
                tail.copy_(torch.randint(values, tail.shape, generator=self.generator))

    def _plan(self) -> None:
        slots = torch.arange(len(self.entries))
        settings, progress = self.state.take(slots, *self._widths(range(len(self.entries))))
        self.state.put(slots, plan_pass(self.config, ALGORITHMS, settings, progress))

    def scramble(self, slots: Sequence[int]) -> None:
        """Put any progress that has the right shape into ``slots``, whether or not a decoder gets there."""
        progress = self.state.progress
        for slot in slots:
            length, blocks = self.entries[slot].length, self.entries[slot].blocks
            dice = self.dice
            passes = dice.randint(0, 9)
            progress.canvas[slot, dice.choice([length, dice.randint(0, length)]) : length] = 1
            masked = progress.canvas[slot, :length] == MASK
            progress.candidates[slot, :length] = masked & (self._rolled(length, 4) > 0)
            progress.active[slot, :blocks] = self._rolled(blocks, dice.choice([1, 3])) > 0
            progress.block_cached[slot, :blocks] = self._rolled(blocks, 4) == 0
            progress.done_pass[slot, :blocks] = self._rolled(blocks, passes + 2) - 1
            progress.opened[slot] = dice.randint(1, blocks - 1)
            progress.passes[slot], progress.opened_pass[slot] = passes, dice.randint(0, passes)
            ends = dice.choice([0, length, dice.randint(0, length)]), dice.randint(0, length)
            progress.cache_length[slot] = max(ends)
            progress.window_start[slot] = min(ends)
            progress.window_end[slot] = length
            progress.failed[slot] = dice.random() < 0.05

    def _rolled(self, count: int, sides: int) -> Tensor:
        return torch.randint(sides, (count,), generator=self.generator)

    def _widths(self, slots: Sequence[int]) -> tuple[int, int]:
        return max(self.entries[slot].length for slot in slots), max(self.entries[slot].blocks for slot in slots)

    def running(self) -> list[int]:
        """Slots that are not done."""
        return (~self.state.progress.done).nonzero().flatten().tolist()

    def some(self) -> list[int]:
        """Some slots in any order: most of those that run, and a few that are done."""
        running = self.running()
        done = sorted({*range(len(self.entries))} - {*running})
        picked = self.dice.sample(running, self.dice.randint((len(running) + 1) // 2, len(running)))
        picked += self.dice.sample(done, min(len(done), 2))
        self.dice.shuffle(picked)
        return picked

    def shape(self, slots: Sequence[int], rows: int) -> TensorSizes:
        """The sizes of a step, sometimes with room to spare, as in a graph's bucket."""
        width, blocks = self._widths(slots)
        spare = self.dice.choice([0, 0, 1, 9])
        longest = self.state.progress.canvas.shape[1]
        width, blocks = min(width + spare, longest), min(blocks + spare, longest + 1)
        return TensorSizes(len(slots), 0, rows + spare, width, blocks, ALGORITHMS, True)

    def chosen(self, slots: Sequence[int], sizes: TensorSizes) -> Tensor:
        """The candidates of ``slots`` as a step numbers them."""
        flat = self.state.progress.candidates[torch.tensor(slots), : sizes.width].flatten()
        places = flat.nonzero().flatten()
        return torch.cat((places, torch.full((sizes.rows - len(places),), len(flat))))

    def count(self, slots: Sequence[int]) -> int:
        """Candidates of ``slots``."""
        return int(self.state.progress.candidates[torch.tensor(slots)].sum())

    def selected(self, rows: int, broken: float) -> Selected:
        """Values with many ties; a share ``broken`` of the scores is NaN or infinite."""

        def tokens() -> Tensor:
            ids = torch.randint(MASK - 1, (rows,), generator=self.generator)
            rare = torch.rand(rows, generator=self.generator)
            return ids.masked_fill(rare < 0.03, EOS).masked_fill(rare > 0.995, MASK)

        def scores(values: int) -> Tensor:
            drawn = torch.randint(values, (rows,), generator=self.generator) / 8
            odd = torch.tensor([torch.nan, torch.inf, -torch.inf])
            kinds = odd[torch.randint(3, (rows,), generator=self.generator)]
            return torch.where(torch.rand(rows, generator=self.generator) < broken, kinds, drawn)

        return Selected(tokens(), tokens(), scores(20), scores(8), -scores(9), -scores(9))


def _random_request(dice: random.Random, max_seq_len: int) -> tuple[list[int], SamplingParams]:
    prompt = [dice.randrange(MASK) for _ in range(dice.choice([0, 1, 3, 8, 20]))]
    if prompt and dice.random() < 0.3:
        for _ in range(dice.randint(1, 4)):
            prompt[dice.randrange(len(prompt))] = MASK
    tokens = 0 if MASK in prompt and dice.random() < 0.2 else dice.randint(1, max_seq_len - len(prompt))
    return prompt, SamplingParams(
        max_tokens=tokens,
        decoding=_random_decoding(dice, tokens),
        ignore_eos=dice.random() < 0.1,
        end_id=dice.choice([None, None, 8]),
        stop_token_ids=dice.sample(STOPS, dice.choice([0, 0, 1, 3])),
    )


def _random_decoding(dice: random.Random, tokens: int) -> DecodingConfig:
    algorithm = dice.choice(ALGORITHMS)
    size = dice.choice([1, 2, 3, 5, 8, 10, 16, 20, 31, 32, 64, 1 << 30])
    own: dict[str, Any] = {}
    if algorithm == "MultiBlock" and dice.random() < 0.7:
        own = {
            "cache_delay_iter": dice.randint(0, 4),
            "refresh_interval": dice.choice([None, 1, 2, 3, 7]),
            "full_settling": dice.random() < 0.5,
            "published_shift": dice.random() < 0.5,
        }
    if algorithm == "MultiBlock" and dice.random() < 0.6:
        own["window_ahead"] = dice.choice([0, 0, 1, 2, 1 << 30])
    blocks = -(-tokens // size)
    if algorithm == "LowConfidence" and tokens and dice.random() < 0.6:
        own = {"steps": blocks * dice.randint(1, tokens // blocks)}
    return DecodingConfig(
        algorithm,
        block_size=size,
        threshold=dice.choice(["auto", None, 0.0, 0.25, 0.5, 1.0, 2.0]),
        block_add_threshold=dice.choice([-1.0, 0.0, 0.1, 0.3, 0.5, 1.0, 1.5]),
        decoded_token_threshold=dice.choice([-1.0, 0.0, 0.5, 0.9, 0.95, 1.0]),
        early_stop=dice.random() < 0.7,
        **own,
    )


# Comparison


def copy_of(state: DecodingState, device: str = "cpu") -> DecodingState:
    """The same values in memory of its own."""
    parts = [
        type(part)(**{item.name: getattr(part, item.name).to(device, copy=True) for item in fields(part)})
        for part in (state.settings, state.progress)
    ]
    return DecodingState(*parts)


def differences(state: DecodingState, wanted: DecodingState) -> list[str]:
    """Where any field of the progress differs in any slot."""
    found = []
    for item in fields(RequestProgress):
        got, want = getattr(state.progress, item.name), getattr(wanted.progress, item.name)
        unequal = (got.cpu().nan_to_num(nan=9e9) != want.nan_to_num(nan=9e9)).reshape(len(want), -1).any(1)
        found += [f"{item.name} of slot {slot}" for slot in unequal.nonzero().flatten().tolist()]
    return found


def compare_step(work: Workload, other: Advance, slots: list[int], broken: float, device: str = "cpu") -> None:
    """One step by the tensor code and by ``other`` on a copy of the state; every value must be the same."""
    shape = work.shape(slots, work.count(slots))
    chosen, selected, where = work.chosen(slots, shape), work.selected(shape.rows, broken), torch.tensor(slots)
    mine = copy_of(work.state, device)
    there = Selected(**{name: values.to(device) for name, values in vars(selected).items()})
    got = other(work.config, mine, where.to(device), shape, chosen.to(device), there)
    wanted = advance(work.config, work.state, where, shape, chosen, selected)
    assert differences(mine, work.state) == []
    assert torch.equal(got.cpu(), wanted)
