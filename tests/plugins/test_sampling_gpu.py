"""Sampling on a GPU: the tokens of the tensor code on the CPU, bit for bit, and the distributions they must follow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d3llm_trt.plugins import library, ops
from tests.plugins.test_sampling import DRAWS, LIMITS, MASK, ROWS
from tests.support.sampling import KINDS, Sampling, chi_square_excess, exact_probabilities

pytestmark = pytest.mark.gpu
VOCABS = (2, 3, 9, 50, 1023, 1025, 5000, 32_003, 126_464)


@pytest.fixture(autouse=True, scope="module")
def compiled_kernels() -> None:
    """Without the library these tests would compare the reference with itself."""
    library.load()


def chosen(given: Sampling, logits: Tensor) -> tuple[Tensor, Tensor]:
    """By the kernel, of ``logits`` on the GPU in any dtype."""
    there = given.on("cuda")
    eps = torch.full_like(there.keys.temperature, 1e-12)
    optional = (*vars(there.keys).values(), *vars(there.limits).values(), there.barred)
    greedy, sampled, *_ = ops.select(logits, given.mask_id, eps, *optional)
    return greedy, sampled


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tokens_are_those_of_the_tensor_code(kind: str, dtype: torch.dtype) -> None:
    """Every temperature and limit, with one and two blocks on a multiprocessor."""
    dice = torch.Generator().manual_seed(17)
    for vocab in VOCABS:
        for rows in (12, 150) if vocab < 10_000 else (12,):
            given = Sampling.random(kind, rows, vocab, dice)
            rounded = given.logits.to(dtype)
            given = Sampling(rounded.float(), given.mask_id, given.keys, given.limits, given.barred)
            assert given.differences(*chosen(given, rounded.cuda())) == [], (vocab, rows)


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_limits_of_rows_anywhere_in_memory(offset: int) -> None:
    dice = torch.Generator().manual_seed(offset)
    for vocab, gap in ((5, 3), (130, 1), (4097, 0), (20_000, 5)):
        given = Sampling.random("bfloat16", 9, vocab, dice)
        memory = torch.full((9 * (vocab + gap) + offset,), torch.nan, dtype=torch.bfloat16, device="cuda")
        logits = memory[offset:].view(9, vocab + gap)[:, :vocab]
        logits.copy_(given.logits)
        assert given.differences(*chosen(given, logits)) == [], (vocab, gap)


def drawn(row: Tensor, count: int, temperature: float, mask_id: int, top_k: int, top_p: float, seed: int = 5) -> Tensor:
    """How often each token of a row is drawn."""
    device = torch.device("cuda")
    keys = (
        torch.full((count,), temperature, device=device),
        torch.full((count,), seed, device=device),
        torch.arange(count, device=device),
        torch.ones(count, dtype=torch.int64, device=device),
    )
    limits = (
        torch.full((count,), top_k, device=device),
        torch.full((count,), top_p, dtype=torch.float64, device=device),
    )
    logits = row.to(device).expand(count, -1).contiguous()
    _, sampled, *_ = ops.select(logits, mask_id, torch.zeros(count, device=device), *keys, *limits)
    return torch.bincount(sampled, minlength=len(row)).cpu()


@pytest.mark.parametrize(("top_k", "top_p"), LIMITS)
@pytest.mark.parametrize("name", ROWS)
def test_a_million_draws_follow_the_distribution(name: str, top_k: int, top_p: float) -> None:
    row = ROWS[name]
    choosable = row.index_fill(0, torch.tensor([MASK]), -torch.inf)
    counts = drawn(row, DRAWS, 0.7, MASK, top_k, top_p)
    assert chi_square_excess(counts, exact_probabilities(choosable, 0.7, top_k, top_p)) < 5


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (1500, 1.0), (1500, 0.8), (40, 0.95)])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_a_million_draws_from_thousands_of_tokens(spread: float, top_k: int, top_p: float) -> None:
    row = torch.randn(4000, generator=torch.Generator().manual_seed(2)) * spread
    counts = sum(drawn(row, DRAWS // 10, 1.0, 7, top_k, top_p, seed) for seed in range(10))
    assert isinstance(counts, Tensor)
    choosable = row.index_fill(0, torch.tensor([7]), -torch.inf)
    assert chi_square_excess(counts, exact_probabilities(choosable, 1.0, top_k, top_p)) < 5


def test_a_large_vocabulary_that_shares_a_thousandth_is_drawn_from() -> None:
    """Its tokens lie 18.65 nats below the best; with noise of 23 bits, 2 % of them would come."""
    vocab, tail, rows = 126_464, 1e-3, 2048
    row = torch.zeros(vocab)
    row[9] = torch.tensor((1 - tail) / (tail / (vocab - 2))).log()
    others = sum(rows - int(drawn(row, rows, 1.0, 7, 0, 1.0, seed)[9]) for seed in range(200))
    expected = 200 * rows * tail
    assert abs(others - expected) < 5 * expected**0.5, (others, expected)
