"""Buckets: which sizes are captured, and which of them a step takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d3llm_trt.runtime.decoding.step import StepSizes
from d3llm_trt.runtime.stepping.buckets import MOST_DEFAULT_TOKENS, Buckets, batch_sizes, token_sizes
from d3llm_trt.runtime.stepping.policy import policy_on


@pytest.mark.parametrize(("most", "sizes"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_batches_double_up_to_the_largest(most: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(most) == sizes


@given(st.integers(1, 20000))
def test_token_sizes_ascend_to_what_the_engine_takes(most: int) -> None:
    sizes = token_sizes(most)
    assert sizes[-1] == most and list(sizes) == sorted(set(sizes))


@given(st.integers(1, 8), st.integers(1, 4096), st.data())
def test_a_bucket_holds_the_step(batch: int, tokens: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, tokens))
    bucket = Buckets(batch_sizes(8), token_sizes(4096)).at_least(batch, tokens, rows)
    assert bucket.batch >= batch and bucket.tokens >= tokens and bucket.tokens >= bucket.rows >= rows


@given(st.integers(1, 20000))
def test_few_numbers_of_rows_are_captured(tokens: int) -> None:
    buckets = Buckets((1,), (tokens,))
    assert len({buckets.at_least(1, tokens, rows).rows for rows in range(1, tokens + 1)}) <= tokens.bit_length()


@pytest.mark.parametrize(("longest", "most"), [(300, 2400), (2048, 16384), (100, 800), (2, 2)])
@pytest.mark.parametrize("largest_batch", [False, True])
def test_one_short_request_never_needs_more_than_the_defaults(longest: int, most: int, largest_batch: bool) -> None:
    buckets = Buckets(batch_sizes(8), token_sizes(most), largest_batch)
    defaults = buckets.defaults(longest)
    short = range(2, min(longest, MOST_DEFAULT_TOKENS) + 1)
    needed = {buckets.at_least(1, tokens, rows) for tokens in short for rows in range(1, tokens + 1)}
    assert set(defaults) == needed and list(defaults) == sorted(needed, reverse=True)
    assert len(defaults) < 160


def test_blackwell_takes_the_largest_batch() -> None:
    assert Buckets((1, 2, 4), (64, 128), largest_batch=True).at_least(1, 65, 3) == StepSizes(4, 128, 128)


@pytest.mark.parametrize(
    ("wanted", "capability", "policy"),
    [(None, (9, 0), "all"), (None, (12, 0), "largest"), ("all", (10, 0), "all"), ("off", (9, 0), "off")],
)
def test_the_policy_goes_by_the_gpu_unless_it_is_asked_for(
    wanted: str | None, capability: tuple[int, int], policy: str
) -> None:
    assert policy_on(capability, wanted) == policy
