"""Canvases of many lengths, one behind the other: no padding, and one shape for every training step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from examples.tiny_d3llm.data import Dataset
from examples.tiny_d3llm.tasks import Task

PADDING_WEIGHT = 0.1  # of EOS behind the answer, which is easy
SHORT_TAIL = 32  # the most EOS behind the answer in half of the canvases


@dataclass(frozen=True)
class Layout:
    """Where packed canvases lie.

    ``edges[C + 1]``, int32: canvas c is packed positions ``[edges[c], edges[c + 1])``, maybe none.
    ``canvas[T]`` and ``positions[T]``: of each packed position, its canvas and its place in it.
    ``longest``: no canvas is longer.
    """

    edges: Tensor
    canvas: Tensor
    positions: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Tensor, packed: int, longest: int) -> Layout:
        """Canvases of ``lengths[C]`` in ``packed`` positions; what does not fit is cut off or left out."""
        ends = lengths.cumsum(0).clamp(max=packed)
        at = torch.arange(packed, device=lengths.device)
        canvas = torch.searchsorted(ends, at, right=True)
        edges = torch.cat((ends.new_zeros(1), ends))
        return cls(edges.int(), canvas, at - edges[canvas], longest)


@dataclass(frozen=True)
class Pack:
    """A training step's canvases, ``[T]`` each.

    ``rows``: the problem of each position; ``ids``: its token; ``answer``: its place in the answer, negative in the
    prompt; ``counts``: 0 in the prompt, 1 in the answer and its first EOS, little behind.
    """

    layout: Layout
    rows: Tensor
    ids: Tensor
    answer: Tensor
    counts: Tensor


class Packer:
    """Draws packs of ``packed`` positions from a data set, with as many positions behind the answers as in use.

    Draws on the data set's device and waits for nothing.
    """

    def __init__(self, task: Task, dataset: Dataset, packed: int) -> None:
        self._dataset = dataset
        self._packed = packed
        self._task = task
        self._canvases = -(-packed // int(dataset.total_length.min()))  # enough, however short they are

    def draw(self) -> Pack:
        """Problems at random; the last canvas, which may be cut off, counts nothing."""
        data, device = self._dataset, self._dataset.ids.device
        drawn = torch.randint(len(data.start), (self._canvases,), device=device)
        lengths = data.total_length[drawn] + self._tails(drawn)
        layout = Layout.of(lengths, self._packed, self._task.max_positions)
        rows = drawn[layout.canvas]
        behind = layout.positions - data.total_length[rows]
        answer = layout.positions - data.prompt_length[rows]
        whole = layout.edges.diff()[layout.canvas] == lengths[layout.canvas]
        counts = torch.where(behind > 0, PADDING_WEIGHT, 1.0) * ((answer >= 0) & whole)
        return Pack(layout, rows, data.tokens(rows, layout.positions), answer, counts)

    def _tails(self, drawn: Tensor) -> Tensor:
        """EOS behind each answer: at least one, few or up to the end of a canvas in use."""
        data, luck = self._dataset, torch.rand(2, len(drawn), device=self._dataset.ids.device)
        room = data.prompt_length[drawn] + self._task.answer_positions - data.total_length[drawn]
        most = torch.where(luck[0] < 0.5, room.clamp(max=SHORT_TAIL), room)
        return 1 + (luck[1] * most).long().clamp(max=room - 1)
