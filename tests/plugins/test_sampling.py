"""Sampling: noise that is exact into its tails, distributions, limits, and the kernel's host build bit for bit."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from d3llm_trt.plugins.gumbel import UNIFORM_BITS, SampleKeys, gumbel_of_bits, gumbel_of_words
from d3llm_trt.plugins.nucleus import Limits, kept_tokens
from d3llm_trt.plugins.reference import select
from tests.support.host_library import build_host_library, run_under_thread_sanitizer
from tests.support.sampling import KINDS, HostSelect, Sampling, chi_square_excess, exact_probabilities

DRAWS = 1_000_000
VOCAB, MASK = 17, 4
ROWS = {
    "flat": torch.zeros(VOCAB),
    "peaked": torch.zeros(VOCAB).index_fill(0, torch.tensor([9]), 7.0),
    "long tail": -0.7 * torch.arange(VOCAB).float(),
}
LIMITS = [(0, 1.0), (0, 0.9), (5, 1.0), (7, 0.8)]


# Noise


def words_by_octaves(each: int) -> tuple[Tensor, Tensor]:
    """Random words that cover both tails evenly in octaves, and the share of all words that each stands for."""
    octaves, steps = torch.arange(1, 53)[:, None], (torch.arange(each) + 0.5) / each
    small = ((1 + steps.double()) * 2.0 ** (63 - octaves)).long().flatten() | 1 << 11
    shares = (2.0 ** (-1 - octaves.double()) / each).expand(52, each).flatten()
    return torch.cat((small, ~small)), torch.cat((shares, shares))


def test_noise_is_right_into_both_tails() -> None:
    words, _ = words_by_octaves(1000)
    low, high = words[words >= 0], ~words[words < 0]
    bits = [((part >> 11) | 1).double() * 2.0**-53 for part in (low, high)]
    wanted = torch.cat((-(-torch.log1p(-bits[0])).log(), -(-bits[1].log()).log()))
    noise = gumbel_of_words(torch.cat((low, ~high)))
    assert (noise.double() - wanted).abs().max() < 4e-6
    assert 36 < noise.max() < 36.74 and -3.61 < noise.min() < -3.6


def test_a_tail_is_drawn_as_often_as_its_share() -> None:
    """All noise by its share, no chance: one likely token, and a vocabulary that shares what is left."""
    vocab = 126464
    words, shares = words_by_octaves(2000)
    noise, order = gumbel_of_words(words).double().sort(descending=True)
    above = torch.cat((torch.zeros(1, dtype=torch.float64), shares[order].cumsum(0)))
    for tail in (0.1, 0.01, 1e-3, 4e-4, 1e-5, 1e-6):
        gap = torch.tensor((1 - tail) / (tail / (vocab - 2))).double().log()
        loses_to_one = above[torch.searchsorted(-noise, -(noise + gap))]
        drawn = -(shares[order] * torch.expm1((vocab - 2) * torch.log1p(-loses_to_one))).sum()
        assert abs(float(drawn) / tail - 1) < 2e-3, tail


def test_noise_by_its_leading_bits_ascends() -> None:
    top = (1 << UNIFORM_BITS) - 1
    bits = torch.tensor([0, 1, 2, 1000, top // 2, top - 1, top])
    noise = gumbel_of_bits(bits)
    assert noise.isfinite().all() and (noise.diff() > 0).all()
    v = (top - bits.double() + 0.42) / (top + 1)
    assert (noise - -(-torch.log1p(-v)).log()).abs().max() < 1e-4


def drawn(row: Tensor, count: int, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """How often each token is drawn."""
    keys = SampleKeys(
        torch.full((count,), temperature), torch.full((count,), 5), torch.arange(count), torch.ones(count).long()
    )
    limits = Limits(torch.full((count,), top_k), torch.full((count,), top_p, dtype=torch.float64))
    limited = limits if top_k or top_p < 1 else None
    selected = select(row.expand(count, -1), MASK, torch.zeros(count), keys, limited)
    return torch.bincount(selected.sampled, minlength=len(row))


# Distributions


@pytest.mark.parametrize(("top_k", "top_p"), LIMITS)
@pytest.mark.parametrize("name", ROWS)
def test_a_million_draws_follow_the_distribution(name: str, top_k: int, top_p: float) -> None:
    row = ROWS[name]
    choosable = row.index_fill(0, torch.tensor([MASK]), -torch.inf)
    counts = drawn(row, DRAWS, 0.7, top_k, top_p)
    assert chi_square_excess(counts, exact_probabilities(choosable, 0.7, top_k, top_p)) < 5


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 30.0, 3e38])
def test_any_temperature_keeps_equals_equal(temperature: float) -> None:
    """Large logits swallow small noise in float32, and large noise small logits."""
    row = torch.tensor([20.0, 20.0, 11.0, 20.0, 25.0, 19.999])
    counts = drawn(row, 60_000, temperature)
    choosable = row.index_fill(0, torch.tensor([MASK]), -torch.inf)
    assert chi_square_excess(counts, exact_probabilities(choosable, temperature)) < 5


# Limits


def outside_of_float64(scores: Tensor, temperature: float, top_k: int, top_p: float) -> int:
    """How many tokens are kept or left out against float64, but for those that lie on the limit."""
    rows = len(scores)
    limits = Limits(torch.full((rows,), top_k), torch.full((rows,), top_p, dtype=torch.float64))
    kept = kept_tokens(scores, torch.full((rows,), temperature), limits)
    wrong = 0
    for row, mine in zip(scores, kept, strict=True):
        sets = [exact_probabilities(row, temperature, top_k, share) > 0 for share in (top_p * (1 - 1e-6), top_p)]
        sets.append(exact_probabilities(row, temperature, top_k, min(1.0, top_p * (1 + 1e-6))) > 0)
        wrong += int((mine & ~sets[2] | sets[0] & ~mine).sum())
    return wrong


@pytest.mark.parametrize("kind", ["normal", "flat", "few values", "bfloat16", "peaked"])
def test_limits_against_float64(kind: str) -> None:
    dice = torch.Generator().manual_seed(11)
    for vocab in (2, 9, 300, 5000):
        scores = KINDS[kind](12, vocab, dice)
        for temperature, top_k, top_p in ((1.0, 0, 0.9), (0.7, 0, 0.1), (1.3, 7, 1.0), (1.0, 40, 0.7), (0.1, 3, 0.5)):
            assert outside_of_float64(scores, temperature, top_k, top_p) == 0, (vocab, temperature, top_k, top_p)


def test_limits_of_equals_go_by_id_and_keep_the_fewest() -> None:
    def kept(scores: list[float], top_k: int, top_p: float) -> list[int]:
        limits = Limits(torch.tensor([top_k]), torch.tensor([top_p], dtype=torch.float64))
        return kept_tokens(torch.tensor([scores]), torch.ones(1), limits)[0].nonzero().flatten().tolist()

    tens = [0.0] * 10
    assert [len(kept(tens, 0, share / 10)) for share in range(1, 10)] == [*range(1, 10)]
    assert kept(tens, 0, 0.31) == [0, 1, 2, 3] and kept(tens, 4, 0.5) == [0, 1]
    assert kept([1.0, 3.0, 2.0, 3.0], 3, 1.0) == [1, 2, 3] and kept([1.0, 3.0, 2.0, 3.0], 1, 1.0) == [1]
    assert kept([0.0, 9.0, 0.0], 0, 1e-12) == [1]


def test_barred_ids_stay_in_the_softmax_and_are_never_chosen() -> None:
    row = torch.tensor([[1.0, 5.0, 3.0, 4.0, 0.0]])
    barred = torch.tensor([[1, 3, -1, 2, -1, -1, -1, -1]])
    selected = select(row, 4, torch.zeros(1), None, None, barred)
    assert int(selected.greedy) == 2
    assert torch.allclose(selected.confidence, row.softmax(1)[:, 2])
    assert torch.allclose(selected.logprob, row.log_softmax(1)[:, 2])
    assert torch.equal(selected.entropy, select(row, 4, torch.zeros(1), None).entropy)


# The kernel's source on the CPU


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build_host_library("select_host", tmp_path_factory.mktemp("select"))))


def test_the_kernels_noise_is_the_same(library: ctypes.CDLL) -> None:
    words, _ = words_by_octaves(5000)
    noise = torch.empty(len(words))
    library.d3llm_gumbel_host(
        ctypes.c_void_p(words.data_ptr()), ctypes.c_int64(len(words)), ctypes.c_void_p(noise.data_ptr())
    )
    assert torch.equal(noise, gumbel_of_words(words))


def compare_kinds(library: ctypes.CDLL, threads: int, vocabs: tuple[int, ...]) -> None:
    """Rows of every kind, chosen by the host build and by the tensor code."""
    dice = torch.Generator().manual_seed(threads)
    for kind in KINDS:
        for vocab in vocabs:
            given = Sampling.random(kind, 24, vocab, dice)
            assert given.differences(*HostSelect(library, threads)(given)) == [], (kind, vocab)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_kernels_choice_is_the_same(library: ctypes.CDLL, threads: int) -> None:
    compare_kinds(library, threads, (2, 3, 50, 1025, 20_000) if threads < 3 else (7, 1500))


def test_threads_never_race(tmp_path: Path) -> None:
    script = (
        "import ctypes, sys\nfrom tests.plugins import test_sampling as t\n"
        "t.compare_kinds(ctypes.CDLL(sys.argv[1]), 3, (7, 1100))"
    )
    run_under_thread_sanitizer("select_host", tmp_path, script)
