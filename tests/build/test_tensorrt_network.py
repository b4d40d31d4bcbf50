"""The network that was really built for TensorRT, interpreted in torch, equals the model (evidence level L3)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from d3llm_trt import BuildConfig, DecodingConfig, SamplingParams, build_engine
from d3llm_trt.build.calibration import generated_canvases
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.build.quantize import fp8_weights
from d3llm_trt.build.tensorrt.compile import make_builder
from d3llm_trt.build.tensorrt.network import BuiltNetwork, build_network
from d3llm_trt.config import TensorRTConfig
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.packing import quantized_layers
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.model.transformer import forward
from d3llm_trt.runtime.engines.base import EngineSpec, ForwardBatch
from d3llm_trt.runtime.engines.kv_cache import kv_cache_shape
from d3llm_trt.runtime.engines.padded import PaddedEngine, Window, plan_runs
from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from d3llm_trt.tokenizer import Tokenizer
from tests.runtime.test_golden import full_batch
from tests.support.engines import cpu_engine, decode
from tests.support.golden_cases import GOLDEN, read_cases
from tests.support.interpreter import Interpreter
from tests.support.tiny_models import CHATS, CHECKPOINTS

trt = pytest.importorskip("tensorrt_rtx")
FAMILIES = ("llada", "dream")


class ExactEngine:
    """The model in float64: what rounding would hide shows."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], slots: int) -> None:
        self._config = config
        self._weights = {name: tensor.double() for name, tensor in weights.items()}
        self._cache = torch.empty(kv_cache_shape(config, slots, 512), dtype=torch.float64)
        self._tables = rotary_tables(config, 512)

    def forward(self, batch: ForwardBatch) -> Tensor:
        return self.run(batch, TorchOps)

    def run(self, batch: ForwardBatch, kind: type[TorchOps]) -> Tensor:
        windows = Windows(batch.positions, batch.cu_window, batch.kv_lengths, batch.slots)
        ops = kind(self._config, self._weights, self._cache, windows, self._tables)
        return forward(self._config, ops, batch.token_ids, batch.logit_rows)


class InterpretedSession:
    """A session whose network is interpreted. It keeps alive what the network refers to."""

    def __init__(self, built: BuiltNetwork, builder: Any, exact: bool) -> None:
        self._kept = (built, builder)
        self._interpreter = Interpreter(trt, built.lowering.network, built.lowering.given, exact=exact)

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        tensors["logits"].copy_(self._interpreter.run(tensors)["logits"])


Edit = Callable[[dict[str, Tensor]], None]


def packed_weights(checkpoint: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    opened = open_checkpoint(checkpoint)
    return opened.config, {name: tensor.float() for name, tensor in opened.packed_tensors()}


def in_fp8(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The packed tensors of an FP8 engine, calibrated on generated prompts."""
    return fp8_weights(config, weights, generated_canvases(config))


def interpreted(
    checkpoint: Path,
    slots: int,
    *,
    mask: str = "lengths",
    quantization: str | None = None,
    exact: bool = False,
    edit: Edit = lambda weights: None,
) -> PaddedEngine:
    """An engine over the interpreted network of a checkpoint; ``edit`` may damage the weights first."""
    config, weights = packed_weights(checkpoint)
    options = TensorRTConfig(attention_mask=mask)
    asked = BuildConfig("tensorrt-rtx", "float32", slots, 512, quantization=quantization, tensorrt=options)
    settings = asked.resolved(512, "float32")
    builder, _ = make_builder(trt)
    packed = weights if quantization is None else in_fp8(config, weights)
    edit(packed)
    built = build_network(trt, builder, config, packed, settings)
    dtype = torch.float64 if exact else torch.float32
    spec = EngineSpec(config, "tensorrt-rtx", dtype, torch.device("cpu"), slots, 512, slots * 512)
    return PaddedEngine(spec, InterpretedSession(built, builder, exact))


@cache
def golden_batches(family: str) -> list[ForwardBatch]:
    """Four sequences of different lengths together, then a step over the cache that the second batch leaves."""
    given = load_file(GOLDEN / "logits.safetensors")
    ids = [given[f"{family}.{number}.input_ids"].flatten().long() for number in range(4)]
    whole, step = (given[f"{family}.cached.{name}_input_ids"].flatten().long() for name in ("full", "step"))
    start = len(whole) - len(step)
    cached = [full_batch([whole, ids[1]], [0, 0]), full_batch([step, ids[1]], [start, 0])]
    return [full_batch(ids, [0] * 4), *cached]


def worst_error(engine: PaddedEngine, model: Any, family: str) -> float:
    """Largest difference from the model over the golden batches, garbage in every cache."""
    engine.kv_cache.fill_(torch.nan)
    batches = golden_batches(family)
    return max(float((engine.forward(batch) - model.forward(batch)).abs().max()) for batch in batches)


def exact_error(family: str, **options: Any) -> float:
    """Difference of network and model in float64."""
    checkpoint = GOLDEN / f"{family}_tiny"
    model = ExactEngine(*packed_weights(checkpoint), 4)
    return worst_error(interpreted(checkpoint, 4, exact=True, **options), model, family)


@pytest.mark.parametrize("mask", ["lengths", "explicit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_the_model(family: str, mask: str) -> None:
    assert exact_error(family, mask=mask) < 1e-5
    # In float32 both round, on logits of up to 38.
    checkpoint = GOLDEN / f"{family}_tiny"
    assert worst_error(interpreted(checkpoint, 4, mask=mask), cpu_engine(checkpoint, 4), family) < 5e-4


@pytest.mark.parametrize("name", ["layers.1.mlp.down.weight", "layers.0.attention.qkv.weight", "final_norm.weight"])
def test_one_wrong_weight_shows(name: str) -> None:
    def swap(weights: dict[str, Tensor]) -> None:
        weights[name].flatten()[:8] += 0.05

    assert exact_error("llada", edit=swap) > 1e-3


def test_weights_under_each_others_names_show() -> None:
    def swap(weights: dict[str, Tensor]) -> None:
        first, second = (weights[f"layers.{layer}.attention.output.weight"] for layer in (0, 1))
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)

    assert exact_error("dream", edit=swap) > 1e-3


def test_a_wrong_bias_and_a_missing_shift_show() -> None:
    def clear(weights: dict[str, Tensor]) -> None:
        weights["layers.2.attention.qkv.bias"].zero_()

    assert exact_error("dream", edit=clear) > 1e-3
    cases = [(case.prompt, case.params) for case in read_cases() if case.model == "dream_tiny"][:4]
    engine = interpreted(GOLDEN / "dream_tiny", 4)
    unshifted = interpreted(GOLDEN / "dream_tiny", 4)
    object.__setattr__(unshifted.spec, "model_config", replace(engine.spec.model_config, family="llada"))
    assert [a.canvas for a in decode(engine, cases)] != [a.canvas for a in decode(unshifted, cases)]


def test_golden_tokens() -> None:
    """Every algorithm, and cached windows of different starts in one batch, as the published decoders decode them."""
    stable = [case for case in read_cases() if case.golden["stable_to_logit_noise"] >= 1e-3]
    short = [case for case in stable if len(case.generated) <= 64]
    for family in FAMILIES:
        cases = [case for case in short if case.model == f"{family}_tiny"][::2]
        engine = interpreted(GOLDEN / f"{family}_tiny", len(cases))
        for case, answer in zip(cases, decode(engine, [(case.prompt, case.params) for case in cases]), strict=True):
            assert answer.canvas[len(case.prompt) :][: case.compared] == case.generated[: case.compared], case.id


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_decode_to_the_same_tokens(family: str, tmp_path: Path) -> None:
    checkpoint = CHECKPOINTS[family]
    tokenizer = Tokenizer.load(build_engine(checkpoint, tmp_path / "engine"))
    assert tokenizer is not None
    decodings = [
        DecodingConfig(),
        DecodingConfig("MultiBlock", threshold=0.001, block_size=16, cache_delay_iter=1),
        DecodingConfig("MultiBlock", block_size=8, cache_delay_iter=1, full_settling=False, window_ahead=0),
        DecodingConfig("MultiBlock", threshold=0.001, block_size=16, window_ahead=1, refresh_interval=3),
        DecodingConfig("EntropyThreshold", threshold=0.001),
    ]
    requests = [
        (tokenizer.chat_ids(chat), SamplingParams(max_tokens=64, decoding=decoding))
        for chat, decoding in zip(itertools.cycle(CHATS), decodings, strict=False)
    ]
    config, weights = packed_weights(checkpoint)
    slots = len(requests)
    spec = EngineSpec(config, "torch", torch.float32, torch.device("cpu"), slots, 512, slots * 512)
    assert decode(interpreted(checkpoint, slots), requests) == decode(TorchEngine(spec, weights), requests)


# FP8


class FakeQuantEngine(ExactEngine):
    """The float64 model whose linear layers go through FP8 as the scales say."""

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], slots: int) -> None:
        packed = in_fp8(config, weights)
        self._packed = packed
        restored = {
            f"{name}.weight": packed[f"{name}.weight"].double() * packed[f"{name}.weight_scale"].double()
            for name in quantized_layers(config)
        }
        super().__init__(config, {**weights, **restored}, slots)

    def forward(self, batch: ForwardBatch) -> Tensor:
        packed = self._packed

        class Fp8Ops(TorchOps):
            def linear(self, name: str, x: Tensor) -> Tensor:
                if f"{name}.input_scale" in packed:
                    scale = packed[f"{name}.input_scale"].double()
                    x = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).double() * scale
                return super().linear(name, x)

        return self.run(batch, Fp8Ops)


@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_goes_through_the_scales(family: str) -> None:
    checkpoint = GOLDEN / f"{family}_tiny"
    model = FakeQuantEngine(*packed_weights(checkpoint), 4)
    assert worst_error(interpreted(checkpoint, 4, exact=True, quantization="fp8"), model, family) < 1e-5

    def stretch(weights: dict[str, Tensor]) -> None:
        weights["layers.1.mlp.down.input_scale"] *= 1.5  # times 2 would change exponents only

    damaged = interpreted(checkpoint, 4, exact=True, quantization="fp8", edit=stretch)
    assert worst_error(damaged, model, family) > 1e-3


def test_fp8_is_close_to_the_model() -> None:
    config, weights = packed_weights(CHECKPOINTS["llada"])
    packed = in_fp8(config, weights)
    quantized = [name for name, tensor in packed.items() if tensor.dtype == torch.float8_e4m3fn]
    assert "lm_head.weight_scale" not in packed and len(quantized) == 4 * config.num_layers
    for name in quantized:
        restored = packed[name].float() * packed[f"{name}_scale"]
        assert (restored - weights[name]).norm() / weights[name].norm() < 0.04


# Padded windows


def test_windows_run_together_only_where_none_writes_behind_its_cache() -> None:
    def windows(*spans: tuple[int, int, int]) -> list[Window]:
        return [Window(number, slot, 0, start, size, start + size) for number, (slot, start, size) in enumerate(spans)]

    def slots(*spans: tuple[int, int, int]) -> list[list[int]]:
        return [[window.slot for window in run] for run in plan_runs(windows(*spans), 100)]

    assert slots((0, 0, 100)) == [[0]]
    assert slots((0, 0, 100), (3, 0, 7)) == [[0, 3]]
    assert slots((0, 0, 100), (1, 90, 10), (2, 50, 10), (5, 0, 100)) == [[0], [1, 2], [5]]
    assert slots((0, 40, 50), (1, 50, 50), (2, 51, 10)) == [[0, 1], [2]]
