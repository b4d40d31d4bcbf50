"""The bridge to TensorRT 8.5, as far as it goes without one: its networks are the model, its int64 inputs are pairs."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.tensorrt85.prune import prune
from d3llm_trt import BuildConfig
from d3llm_trt.build.tensorrt.compile import make_builder
from d3llm_trt.build.tensorrt.network import BuiltNetwork, build_network
from d3llm_trt.config import TensorRTConfig
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.engines.padded import PaddedEngine
from tests.build.test_tensorrt_network import ExactEngine, packed_weights
from tests.support.golden_batches import worst_error
from tests.support.golden_cases import GOLDEN
from tests.support.tensorrt85.interpreter import BridgeInterpreter
from tests.support.tensorrt85.module import stand_in
from tests.support.tensorrt85.over_rtx import old_module
from tests.support.tensorrt85.running import Engine

rtx = pytest.importorskip("tensorrt_rtx")


class BridgedSession:
    """Interprets a network made through the bridge, and updates the caches as the runtime does."""

    def __init__(self, built: BuiltNetwork, builder: Any) -> None:
        self._kept = (built, builder)
        self._interpreter = BridgeInterpreter(rtx, built.lowering.network.real.new, {}, exact=True)

    def run(self, tensors: Mapping[str, Tensor]) -> None:
        pairs = {
            name: tensor.contiguous().view(torch.int32).reshape(*tensor.shape, 2)
            for name, tensor in tensors.items()
            if tensor.dtype == torch.int64
        }
        for name, result in self._interpreter.run({**tensors, **pairs}).items():
            tensors[name].copy_(result)


def bridged(checkpoint: Path, dtype: str, mask: str = "lengths") -> tuple[BuiltNetwork, Any]:
    """The network of a checkpoint, and the builder that it belongs to."""
    trt = stand_in(old_module(rtx))
    config, weights = packed_weights(checkpoint)
    options = TensorRTConfig(attention="native", attention_mask=mask)
    settings = BuildConfig("tensorrt", dtype, 4, 512, tensorrt=options).resolved(512, dtype)
    builder, messages = make_builder(trt)
    cast = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
    built = build_network(trt, builder, config, cast, settings)
    assert not messages.errors
    return built, builder


@pytest.mark.parametrize("mask", ["lengths", "explicit"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_what_the_bridge_composes_is_the_model(family: str, mask: str) -> None:
    checkpoint = GOLDEN / f"{family}_tiny"
    config, weights = packed_weights(checkpoint)
    spec = EngineSpec(config, "tensorrt", torch.float64, torch.device("cpu"), 4, 512, 4 * 512)
    engine = PaddedEngine(spec, BridgedSession(*bridged(checkpoint, "float32", mask)))
    assert worst_error(engine, ExactEngine(config, weights, 4), family) < 1e-5


def test_a_half_network_says_the_type_of_every_output() -> None:
    built, _ = bridged(GOLDEN / "dream_tiny", "float16")
    network = built.lowering.network
    assert network.has_half
    outputs = [network.real.new.get_output(number) for number in range(network.real.num_outputs)]
    assert len(outputs) > 2 and {output.dtype for output in outputs} == {rtx.float16}


def test_int64_inputs_are_pairs_of_int32_in_the_same_memory() -> None:
    calls: list[Any] = []
    shapes = {"token_ids": (-1, 2), "slots": (-1,), "cache": (4, 2)}
    types = {"token_ids": "int32", "slots": "int32", "cache": "half"}
    real = SimpleNamespace(
        get_tensor_shape=lambda name: shapes[name],
        get_tensor_mode=lambda name: "input",
        get_tensor_dtype=lambda name: types[name],
        get_tensor_profile_shape=lambda name, profile: [(1, 2), (5, 2), (9, 2)] if name == "token_ids" else [(1,)] * 3,
        create_execution_context_without_device_memory=lambda: SimpleNamespace(
            set_input_shape=lambda name, shape: calls.append((name, shape)) or True
        ),
    )
    module = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="input"), int32="int32")
    engine = Engine(module, real, lambda: real)
    assert engine.get_tensor_profile_shape("token_ids", 0) == [(1,), (5,), (9,)]
    assert engine.get_tensor_profile_shape("slots", 0) == [(1,)] * 3
    context = engine.create_execution_context("USER_MANAGED")
    assert context is not None
    for name, shape in (("token_ids", (7,)), ("slots", (3,)), ("cache", (4, 2))):
        assert context.set_input_shape(name, shape)
    assert calls == [("token_ids", (7, 2)), ("slots", (3,)), ("cache", (4, 2))]


def fat_binary(*entries: tuple[int, int, bytes]) -> bytes:
    """Code as ``(kind, architecture, code)``: 1 is PTX, 2 machine code."""
    body = b""
    for kind, architecture, code in entries:
        body += struct.pack("<HHIQ12xI32x", kind, 0x101, 64, len(code), architecture) + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_only_the_code_for_other_gpus_is_emptied(tmp_path: Path) -> None:
    both = fat_binary((2, 80, b"ampere!!"), (2, 90, b"hopper!!"), (1, 90, b"ptx of 9"))
    alone = fat_binary((2, 80, b"ampere!!"))
    library = tmp_path / "library.so"
    library.write_bytes(b"before" + both + b"between" + alone + b"after")
    assert prune(library, 90) == 16
    emptied = fat_binary((2, 80, bytes(8)), (2, 90, b"hopper!!"), (1, 90, bytes(8)))
    assert library.read_bytes() == b"before" + emptied + b"between" + alone + b"after"
