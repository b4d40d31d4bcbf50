"""Numbers of rows that are worth padding to: which stay, and what is kept of the measurement."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from d3llm_trt.bench.random_engine import random_engine
from d3llm_trt.bench.simulated import SimulatedAcceptance
from d3llm_trt.model.config import FAMILIES, Family
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.stepping.buckets import token_sizes
from d3llm_trt.runtime.stepping.factory import make_stepper
from d3llm_trt.runtime.stepping.kernel_stepper import KernelStepper
from d3llm_trt.runtime.stepping.measured_sizes import (
    FOLDER,
    LEAST_GAIN,
    MOST_MEASURED,
    MOST_PADDING,
    Seconds,
    layer_products,
    measured_sizes,
    sizes_for,
    worthwhile_sizes,
)
from examples.tiny_d3llm.network import tiny_config
from examples.tiny_d3llm.tasks import WORD_PROBLEMS
from tests.support.engines import cpu_engine
from tests.support.golden_cases import GOLDEN

LAYER = {"gpu": "a GPU", "torch": "2.11.0"}
SIZES = token_sizes(1500)


class Stopwatch:
    """Says that a product takes as many seconds as it has rows, but some three times as long."""

    def __init__(self, slow: Sequence[int] = ()) -> None:
        self.slow = slow
        self.asked: list[Sequence[int]] = []

    def __call__(self, sizes: Sequence[int]) -> Seconds:
        self.asked.append(sizes)
        return {size: float(size) * (3 if size in self.slow else 1) for size in sizes}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FOLDER


@given(st.dictionaries(st.sampled_from(SIZES), st.floats(1e-6, 1e-3), max_size=len(SIZES)))
def test_a_size_stays_unless_a_larger_one_beats_it(seconds: dict[int, float]) -> None:
    kept = worthwhile_sizes(SIZES, seconds)
    assert kept[-1] == SIZES[-1] and list(kept) == sorted(set(kept))
    for size in SIZES:
        above = [seconds[larger] for larger in kept if size < larger <= size + MOST_PADDING and larger in seconds]
        beaten = size in seconds and min(above, default=1.0) < seconds[size] * (1 - LEAST_GAIN)
        assert (size not in kept) == beaten


def test_what_was_measured_is_kept(cache: Path) -> None:
    watch = Stopwatch(slow=[416, 448])
    kept = measured_sizes(SIZES, LAYER, watch)
    assert kept == tuple(size for size in SIZES if size not in (416, 448))
    assert measured_sizes(SIZES, LAYER, Stopwatch()) == kept
    assert watch.asked == [[size for size in SIZES if size <= MOST_MEASURED]]
    (file,) = cache.iterdir()
    facts = json.loads(file.read_text())
    assert facts["gpu"] == "a GPU" and facts["seconds"]["416"] == 3 * 416


def test_only_sizes_that_are_not_there_are_measured() -> None:
    measured_sizes((8, 16, 24), LAYER, Stopwatch(slow=[8]))
    more = Stopwatch(slow=[32])
    assert measured_sizes((8, 16, 24, 32, 40), LAYER, more) == (16, 24, 40)
    assert more.asked == [[32, 40]]


def test_every_layer_has_its_own_file(cache: Path) -> None:
    measured_sizes((8, 16), LAYER, Stopwatch(slow=[8]))
    assert measured_sizes((8, 16), {**LAYER, "torch": "2.12.0"}, Stopwatch()) == (8, 16)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"seconds": 3}', b'{"seconds": {"x": 1}}', b"\xff", b"{}"])
def test_a_damaged_file_is_measured_again(cache: Path, content: bytes) -> None:
    measured_sizes((8, 16), LAYER, Stopwatch())
    (file,) = cache.iterdir()
    file.write_bytes(content)
    again = Stopwatch(slow=[8])
    assert measured_sizes((8, 16), LAYER, again) == (16,)
    assert again.asked == [[8, 16]]
    assert measured_sizes((8, 16), LAYER, Stopwatch()) == (16,)


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert measured_sizes((8, 16), LAYER, Stopwatch(slow=[8])) == (16,)
    assert "measured again at each start" in caplog.text and "D3LLM_TRT_CACHE" in caplog.text


def test_without_a_home_directory_there_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("D3LLM_TRT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nowhere() -> Path:
        raise RuntimeError("no home directory")

    monkeypatch.setattr(Path, "home", nowhere)
    with caplog.at_level(logging.WARNING):
        assert measured_sizes((8, 16), LAYER, Stopwatch(slow=[8])) == (16,)
    assert "no home directory" in caplog.text


def test_where_nothing_can_be_measured_all_sizes_stay(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(sizes: Sequence[int]) -> Seconds:
        raise torch.OutOfMemoryError("too little")

    with caplog.at_level(logging.WARNING):
        assert measured_sizes(SIZES, LAYER, fails) == SIZES
    assert "too little" in caplog.text and not cache.exists()


def test_engines_without_large_products_keep_all_sizes(cache: Path) -> None:
    tiny = cpu_engine(GOLDEN / "dream_tiny", 1)
    assert sizes_for(tiny, SIZES) == SIZES and not cache.exists()


@pytest.mark.parametrize("quantization", [None, "fp8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_products_of_one_layer_are_run(family: Family, quantization: str | None) -> None:
    config, cpu = tiny_config(WORD_PROBLEMS, family), torch.device("cpu")
    spec = EngineSpec(config, "torch", torch.bfloat16, cpu, 1, 64, 64, quantization)
    weights = [shape for name, shape in config.tensor_shapes().items() if name.startswith("layers.0")]
    with FlopCounterMode(display=False) as counter:
        layer_products(spec)(3)
    assert counter.get_total_flops() == sum(2 * 3 * math.prod(shape) for shape in weights if len(shape) == 2)


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", [None, "fp8"])
def test_products_are_measured_on_a_gpu(cache: Path, quantization: str | None) -> None:
    engine = random_engine(
        "llada-8b", device=torch.device("cuda"), max_batch_size=2, max_seq_len=600, layers=2, quantization=quantization
    )
    sizes = token_sizes(engine.spec.max_num_tokens)
    kept = sizes_for(SimulatedAcceptance(engine, 9.9), sizes)
    (file,) = cache.iterdir()
    written = file.read_bytes()
    seconds = {int(size): taken for size, taken in json.loads(written)["seconds"].items()}
    assert list(seconds) == [size for size in sizes if size <= MOST_MEASURED]
    assert kept == worthwhile_sizes(sizes, seconds) and len(kept) > 30
    # Reading the weights takes as long for 64 rows as for 8, the work of a thousand longer.
    assert seconds[64] < 1.3 * seconds[8] and seconds[1024] > 2 * seconds[8]
    stepper = make_stepper(engine)
    assert isinstance(stepper, KernelStepper) and {bucket.tokens for bucket in stepper.defaults} <= set(kept)
    assert file.read_bytes() == written
