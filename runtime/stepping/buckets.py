"""Buckets: the sizes that steps are captured for, and which of them a step takes."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from d3llm_trt.runtime.decoding.step import StepSizes

# Reading the LM head's weights takes longer than its products with fewer rows.
LEAST_ROWS = 128
# A step of more tokens keeps the GPU busy for longer than the host takes to launch its kernels.
MOST_DEFAULT_TOKENS = 512


@dataclass(frozen=True)
class Buckets:
    """Sizes to choose from; each list is ascending and ends with what the engine can take.

    With ``largest_batch`` every step takes the largest batch, as Blackwell needs it.
    """

    batches: tuple[int, ...]
    tokens: tuple[int, ...]
    largest_batch: bool = False

    def at_least(self, batch: int, tokens: int, rows: int) -> StepSizes:
        """The smallest bucket that holds a step of these sizes."""
        room = _at_least(self.tokens, tokens)
        return StepSizes(
            batch=self.batches[-1] if self.largest_batch else _at_least(self.batches, batch),
            tokens=room,
            rows=min(max(LEAST_ROWS, 1 << (rows - 1).bit_length()), room),
        )

    def defaults(self, longest: int) -> tuple[StepSizes, ...]:
        """What one request of up to ``longest`` tokens may take, up to MOST_DEFAULT_TOKENS, the largest first."""
        most = min(longest, MOST_DEFAULT_TOKENS)
        sizes = {_at_least(self.tokens, tokens) for tokens in range(2, most + 1)}
        buckets = {self.at_least(1, size, 1 << power) for size in sizes for power in range(size.bit_length() + 1)}
        return tuple(sorted(buckets, reverse=True))


def batch_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and ``most``."""
    return tuple(sorted({min(1 << power, most) for power in range(most.bit_length() + 1)}))


def token_sizes(most: int) -> tuple[int, ...]:
    """Numbers of rows to choose buckets from: steps of 8 up to 512, of 32 up to 1024, of 128 up to ``most``."""
    steps = [*range(8, 513, 8), *range(544, 1025, 32), *range(1152, most, 128)]
    return (*(size for size in steps if size < most), most)


def _at_least(sizes: Sequence[int], least: int) -> int:
    return sizes[bisect.bisect_left(sizes, least)]
