"""Every kernel on a GPU against a float64 reference: fresh random inputs, poisoned outputs, poisoned unused cache."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from d3llm_trt.plugins import library, ops, reference

pytestmark = pytest.mark.gpu
HALF = (torch.bfloat16, torch.float16)
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 1e-3}
RATIOS = {"1": (4, 4), "2": (4, 2), "7": (14, 2), "8": (16, 2)}


@pytest.fixture(autouse=True, scope="module")
def compiled_kernels() -> None:
    """Without the library these tests would compare the reference with itself."""
    library.load()


@pytest.fixture(autouse=True)
def fresh_seed() -> None:
    """New inputs every time; a failure shows the seed, which D3LLM_TEST_SEED repeats."""
    seed = int(os.environ.get("D3LLM_TEST_SEED", random.SystemRandom().randrange(1 << 31)))
    torch.manual_seed(seed)
    random.seed(seed)
    print(f"D3LLM_TEST_SEED={seed}")


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Everything torch allocates without a value is NaN or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1, device="cuda").isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Over all values together."""
    assert found.shape == wanted.shape and bool(found.isfinite().all())
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


@dataclass(frozen=True)
class Window:
    """``length`` rows from ``start`` that attend to ``kv_length`` cache rows."""

    start: int
    length: int
    kv_length: int

    @classmethod
    def whole(cls, length: int) -> Window:
        return cls(0, length, length)

    @classmethod
    def ending_at(cls, end: int, length: int) -> Window:
        return cls(end - length, length, end)

    @classmethod
    def any(cls, longest: int) -> Window:
        """Anywhere in a canvas, now and then empty, with or without cached rows behind it."""
        end = random.randint(1, longest)
        start = random.choice([0, random.randint(0, end), end])
        return cls(start, end - start, random.choice([end, random.randint(end, longest)]))


@dataclass(frozen=True)
class Batch:
    """Inputs of window_attention; cache rows that no window may read are NaN, and so are rows that belong to nobody."""

    given: dict[str, Tensor]
    windows: list[Window]
    cache_before: Tensor

    @classmethod
    def of(
        cls, windows: list[Window], heads: int, kv_heads: int, dim: int, dtype: torch.dtype, padding: int = 0
    ) -> Batch:
        lengths, max_seq = [window.length for window in windows], max(window.kv_length for window in windows) + 3
        slots = torch.randperm(len(windows) + 2)[: len(windows)]
        positions = torch.cat([torch.arange(w.start, w.start + w.length) for w in windows] + [torch.zeros(padding)])
        qkv = torch.randn(sum(lengths) + padding, (heads + 2 * kv_heads) * dim, device="cuda").to(dtype)
        qkv[sum(lengths) :] = torch.nan
        cache = torch.full((len(windows) + 2, 2, kv_heads, max_seq, dim), torch.nan, dtype=dtype, device="cuda")
        for window, slot in zip(windows, slots.tolist(), strict=True):
            rows = cache[slot, :, :, : window.kv_length]
            rows.copy_(torch.randn(rows.shape, device="cuda"))
            rows[:, :, window.start : window.start + window.length] = torch.nan
        frequencies = 1e4 ** -(torch.arange(0, dim, 2, device="cuda") / dim)
        angles = torch.arange(max_seq, device="cuda")[:, None] * frequencies
        layout = {
            "positions": positions.long(),
            "cu_window": torch.tensor([0, *lengths]).cumsum(0),
            "kv_lengths": torch.tensor([window.kv_length for window in windows]),
            "slots": slots,
        }
        layout = {name: values.cuda() for name, values in layout.items()}
        return cls(
            {"qkv": qkv, "kv_cache": cache, **layout, "cos": angles.cos(), "sin": angles.sin()}, windows, cache.clone()
        )

    @property
    def rows(self) -> int:
        return sum(window.length for window in self.windows)

    def exact(self) -> tuple[Tensor, Tensor]:
        """Output and cache in float64; K and V are cached in the dtype, as the contract has it."""
        qkv, _, *rest = self.given.values()
        exact_cache = self.cache_before.double()
        out = reference.window_attention(qkv.double(), exact_cache, *rest)
        return out[: self.rows], exact_cache


def check_attention(batch: Batch) -> None:
    """The op: its output, what it cached, and that nothing else was touched."""
    dtype, cache = batch.given["qkv"].dtype, batch.given["kv_cache"]
    wanted, exact_cache = batch.exact()
    with poisoned_outputs():
        out = ops.window_attention(*batch.given.values())
    assert not out[batch.rows :].any()
    if batch.rows:
        assert relative_error(out[: batch.rows], wanted) < TOLERANCE[dtype]
    written = exact_cache.isnan() != batch.cache_before.isnan()
    assert torch.equal(cache[~written].view(torch.int16), batch.cache_before[~written].view(torch.int16))
    if batch.rows:
        assert relative_error(cache[written], exact_cache[written]) < TOLERANCE[dtype]
    values = written[:, 1]
    assert torch.equal(cache[:, 1][values], exact_cache[:, 1][values].to(dtype))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("ratio", RATIOS)
def test_attention_of_ragged_batches(ratio: str, dim: int, dtype: torch.dtype) -> None:
    for count, padding in ((1, 0), (5, 3), (9, 70)):
        windows = [Window.any(random.choice([40, 200, 600])) for _ in range(count)]
        check_attention(Batch.of(windows, *RATIOS[ratio], dim, dtype, padding))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("length", [1, 2, 7, 16, 31, 63, 64, 65, 127, 128, 129, 191, 255, 376, 1000, 1024, 2047, 4096])
def test_attention_of_whole_canvases(length: int, ratio: str) -> None:
    check_attention(Batch.of([Window.whole(length)], *RATIOS[ratio], 128, torch.bfloat16))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("length", [1, 8, 33, 64, 100, 128, 160])
@pytest.mark.parametrize("end", [161, 500, 1152, 4096])
def test_attention_of_windows_behind_a_cache(end: int, length: int, dtype: torch.dtype) -> None:
    for ratio in ("1", "7"):
        check_attention(Batch.of([Window.ending_at(end, length)], *RATIOS[ratio], 128, dtype, padding=5))


@pytest.mark.parametrize("dim", [64, 128])
def test_attention_of_32_windows(dim: int) -> None:
    windows = [Window.any(500) for _ in range(29)] + [Window(7, 0, 12), Window(0, 0, 0), Window.whole(499)]
    random.shuffle(windows)
    check_attention(Batch.of(windows, *RATIOS["7"], dim, torch.bfloat16, padding=33))


def test_attention_without_windows() -> None:
    check_attention(Batch.of([Window(0, 0, 0), Window(3, 0, 9)], 4, 2, 64, torch.bfloat16, padding=130))
    check_attention(Batch.of([Window(2, 0, 4)], 4, 2, 64, torch.bfloat16))


@pytest.mark.parametrize("sizes", [(32, 32, 376), (28, 4, 376), (32, 32, 1024), (28, 4, 1024)], ids=str)
def test_attention_of_the_models(sizes: tuple[int, int, int]) -> None:
    heads, kv_heads, length = sizes
    check_attention(Batch.of([Window.whole(length)] * 4, heads, kv_heads, 128, torch.bfloat16))


def test_write_and_attend_are_window_attention_in_two_launches() -> None:
    batch = Batch.of([Window.any(300) for _ in range(6)] + [Window.whole(90)], 14, 2, 128, torch.bfloat16, padding=9)
    wanted, _ = batch.exact()
    out = torch.full((len(batch.given["qkv"]), 14 * 128), torch.nan, dtype=torch.bfloat16, device="cuda")
    params = ops.attention_params(ops.AttentionInputs(**batch.given), out)
    for name in ("write_kv", "attend"):
        library.load().launch(name, params, torch.cuda.current_stream().cuda_stream)
    assert relative_error(out[: batch.rows], wanted) < TOLERANCE[torch.bfloat16]
    assert not out[batch.rows :].any()


def test_large_scores_do_not_overflow() -> None:
    batch = Batch.of([Window.whole(300)], 4, 4, 128, torch.bfloat16)
    batch.given["qkv"][:, : 2 * 4 * 128] *= 30
    wanted, _ = batch.exact()
    # Rounded q and k move scores of hundreds by whole units: compared is what those rounded values give.
    out = ops.window_attention(*batch.given.values())
    assert bool(out.isfinite().all()) and relative_error(out, wanted) < 0.5


@dataclass(frozen=True)
class Logits:
    """Rows somewhere in poisoned memory, and what select needs with them."""

    rows: Tensor
    mask_id: int
    eps: Tensor
    keys: reference.SampleKeys

    @classmethod
    def of(cls, rows: int, vocab: int, dtype: torch.dtype, gap: int = 0, offset: int = 0) -> Logits:
        memory = torch.full((rows * (vocab + gap) + offset,), torch.nan, dtype=dtype, device="cuda")
        logits = memory[offset:].view(rows, vocab + gap)[:, :vocab]
        scales = torch.rand(rows, 1, device="cuda") * 8
        logits.copy_(torch.randn(rows, vocab, device="cuda") * scales + torch.randn(rows, 1, device="cuda") * 20)
        number = torch.arange(rows, device="cuda")
        keys = reference.SampleKeys(torch.where(number % 3 == 0, 0.0, 0.8), number * 12345 - 7, number * 3, number % 64)
        eps = torch.tensor([1e-3, 1e-8, 1e-10, 1e-12], device="cuda")[number % 4]
        return cls(logits, random.randrange(vocab), eps, keys)

    def selected(self, *, sampling: bool) -> reference.Selected:
        keys = (self.keys.temperature, self.keys.seed, self.keys.position, self.keys.number) if sampling else ()
        with poisoned_outputs():
            return reference.Selected(*ops.select(self.rows, self.mask_id, self.eps, *keys))


def check_select(logits: Logits, sampling: bool = False) -> None:
    found = logits.selected(sampling=sampling)
    wanted = reference.select(logits.rows.double(), logits.mask_id, logits.eps.double(), None)
    assert torch.equal(found.greedy, wanted.greedy)
    assert (found.entropy - wanted.entropy).abs().max() < 1e-4
    cold = logits.keys.temperature == 0 if sampling else torch.ones_like(found.greedy, dtype=torch.bool)
    assert torch.equal(found.sampled[cold], found.greedy[cold])
    likelihood = logits.rows.double().log_softmax(-1)
    sampled, greedy = (likelihood.gather(1, ids[:, None])[:, 0] for ids in (found.sampled, found.greedy))
    assert torch.allclose(found.confidence.double(), sampled.exp(), rtol=1e-4, atol=1e-7)
    assert (found.logprob - sampled).abs().max() < 1e-4 and (found.greedy_logprob - greedy).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("vocab", [2, 3, 7, 8, 9, 100, 1001, 32000, 126464, 152064, 200000])
def test_select_against_float64(vocab: int, dtype: torch.dtype) -> None:
    for rows in (1, 5, 150):
        check_select(Logits.of(rows, vocab, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_select_of_rows_anywhere_in_memory(offset: int, dtype: torch.dtype) -> None:
    for vocab, gap in ((5, 3), (130, 1), (4097, 0), (126464, 5), (126464, 8)):
        check_select(Logits.of(7, vocab, dtype, gap, offset), sampling=True)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("vocab", [2, 9, 1001, 126464])
def test_sampled_tokens_are_those_of_the_reference(vocab: int, dtype: torch.dtype) -> None:
    logits = Logits.of(48, vocab, dtype)
    check_select(logits, sampling=True)
    found, wanted = (
        logits.selected(sampling=True),
        reference.select(logits.rows.float(), logits.mask_id, logits.eps, logits.keys),
    )
    assert torch.equal(found.sampled, wanted.sampled)
    assert (found.sampled != logits.mask_id).all()


def test_select_of_odd_rows() -> None:
    for dtype in (torch.float32, *HALF):
        logits = torch.randn(9, 1003, device="cuda").to(dtype)
        logits[0, 500] = torch.nan
        logits[1, 17] = torch.inf
        logits[2, 100:900] = -torch.inf
        logits[3] = -torch.inf
        logits[4], logits[4, 77] = -torch.inf, 1.0
        logits[5, 40] = 60.0
        logits[6, [200, 300, 999]] = 9.0
        logits[7] = 0.25
        logits[8] -= 1000
        eps = torch.full((9,), 1e-12, device="cuda")
        found, exact = ops.select(logits, 40, eps), reference.select(logits.double(), 40, eps.double(), None)
        greedy, _, entropy, confidence, logprob, _ = found
        assert entropy[[0, 1, 3]].isnan().all() and confidence[[0, 1, 3]].isnan().all()
        sound = [2, 4, 5, 6, 7, 8]
        assert torch.equal(greedy[sound], exact.greedy[sound])
        assert (greedy[6], greedy[7]) == (200, 0)
        assert bool(((greedy >= 0) & (greedy < 1003)).all())
        assert (entropy[sound] - exact.entropy[sound]).abs().max() < 1e-4
        assert torch.allclose(confidence[sound].double(), exact.confidence[sound], atol=1e-6)
        assert torch.allclose(logprob[sound].double(), exact.logprob[sound], atol=1e-4)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("hidden", [1, 8, 100, 256, 1000, 3584, 4096, 8192, 16383, 16384])
def test_rms_norm_with_and_without_a_sum(hidden: int, dtype: torch.dtype) -> None:
    for rows in (1, 7, 376):
        x, y = (torch.randn(rows, hidden, device="cuda").to(dtype) for _ in range(2))
        weight = torch.rand(hidden, device="cuda").to(dtype) + 0.5
        with poisoned_outputs():
            alone = ops.rms_norm(x, weight, 1e-5)
            normed, total = ops.add_rms_norm(x, y, weight, 1e-5)
        assert torch.equal(total, x + y)
        for found, given in ((alone, x), (normed, total)):
            wanted, few = reference.rms_norm(given.double(), weight.double(), 1e-5), 2 if found.numel() < 64 else 1
            assert relative_error(found, wanted) < few * TOLERANCE[dtype]
        # Statistics add up in another order: now and then the last bit differs.
        assert (normed != reference.rms_norm(total, weight, 1e-5)).float().mean() < 0.01


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("width", [1, 8, 100, 1000, 12288, 18944])
def test_silu_mul(width: int, dtype: torch.dtype) -> None:
    for rows in (1, 7, 376):
        gate_up = torch.randn(rows, 2 * width, device="cuda").to(dtype) * 4
        with poisoned_outputs():
            found = ops.silu_mul(gate_up)
        # Two roundings of a single value can add up to more than they do on average.
        few = 2 if found.numel() < 64 else 1
        assert relative_error(found, reference.silu_mul(gate_up.double())) < few * TOLERANCE[dtype]
        assert (found != reference.silu_mul(gate_up)).float().mean() < 0.01


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("width", [8, 100, 4096])
@pytest.mark.parametrize("scale", [0.02, 1e-3])
def test_fp8_is_the_rounded_result_in_units_of_the_scale(scale: float, width: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(9, width, device="cuda").to(dtype) * 3, torch.rand(width, device="cuda").to(dtype)
    factor = torch.tensor(scale, device="cuda")
    with poisoned_outputs():
        found = (
            (ops.rms_norm(x, weight, 1e-5, factor), ops.rms_norm(x, weight, 1e-5)),
            (ops.add_rms_norm(x, x, weight, 1e-5, factor)[0], ops.add_rms_norm(x, x, weight, 1e-5)[0]),
            (ops.silu_mul(x, factor), ops.silu_mul(x)),
        )
    for small, plain in found:
        assert small.dtype == torch.float8_e4m3fn
        assert torch.equal(small.view(torch.uint8), reference.to_fp8(plain, factor).view(torch.uint8))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("scale", [0.02, 1.0, 0.37])
def test_fp8_of_any_number(scale: float, dtype: torch.dtype) -> None:
    up = (torch.randn(9, 512, device="cuda") * 100).to(dtype)
    up[0, :6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-7, 0.0, -0.0], device="cuda")
    factor = torch.tensor(scale, device="cuda")
    for gates in (torch.ones_like(up), torch.randn_like(up) * 50):
        x = torch.cat((gates, up), 1)
        wanted = reference.to_fp8(ops.silu_mul(x), factor)
        assert torch.equal(ops.silu_mul(x, factor).view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_attention_gives_fp8(dim: int, dtype: torch.dtype) -> None:
    for scale in (0.02, 1e-3):
        batch = Batch.of([Window.any(300) for _ in range(4)] + [Window.whole(130)], 14, 2, dim, dtype, padding=40)
        factor, given = torch.tensor(scale, device="cuda"), list(batch.given.values())
        with poisoned_outputs():
            small, plain = ops.window_attention(*given, factor), ops.window_attention(*given)
        assert small.dtype == torch.float8_e4m3fn and not small[batch.rows :].float().any()
        assert torch.equal(small.view(torch.uint8), reference.to_fp8(plain, factor).view(torch.uint8))


def test_rows_that_are_not_aligned() -> None:
    """Views that start anywhere are read element by element."""
    memory = torch.randn(3 * 64 + 1, device="cuda").to(torch.bfloat16)
    x, weight = memory[1:].view(3, 64), torch.rand(65, device="cuda").to(torch.bfloat16)[1:]
    assert relative_error(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x.double(), weight.double(), 1e-5)) < 5e-3
    assert relative_error(ops.silu_mul(x), reference.silu_mul(x.double())) < 5e-3


def test_all_ops_are_captured_in_a_graph() -> None:
    batch = Batch.of([Window.whole(70), Window.ending_at(200, 32)], 4, 2, 64, torch.bfloat16)
    logits, weight = Logits.of(3, 1000, torch.bfloat16), torch.ones(256, dtype=torch.bfloat16, device="cuda")
    top_p = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64, device="cuda")
    barred = torch.tensor([[-1] * 8, [3, 5, *[-1] * 6], [-1] * 8], device="cuda")

    def step() -> tuple[Tensor, ...]:
        attended = ops.window_attention(*batch.given.values())
        normed, total = ops.add_rms_norm(attended, attended, weight, 1e-5)
        gated = ops.silu_mul(ops.rms_norm(total, weight, 1e-5))
        keys, limits = vars(logits.keys).values(), (torch.full_like(logits.keys.seed, 9), top_p)
        return normed, gated, *ops.select(logits.rows, logits.mask_id, logits.eps, *keys, *limits, barred)

    torch.cuda.set_sync_debug_mode("error")
    try:
        wanted = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for result in found:
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
