"""TensorRTSession against a recording double of the TensorRT module: every call, shape, address and order.

No GPU of ours runs these plans, so this is all the evidence there is for the session (L1). The double knows nothing
of TensorRT but names and signatures.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from d3llm_trt.config import BuildConfig, TensorRTConfig
from d3llm_trt.errors import EngineError
from d3llm_trt.manifest import Manifest
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.runtime.engines.base import EngineSpec, ForwardBatch
from d3llm_trt.runtime.engines.tensorrt_engine import engine_over
from d3llm_trt.runtime.engines.tensorrt_session import TensorRTSession, check_fits, plan_layers, refit

MODEL = ModelConfig("llada", 32, 16, 32, 2, 2, 2, 8, 1e-5, 1e4, 64, 31, 1, 1)
CPU = torch.device("cpu")
STREAM = 77
Calls = list[tuple[Any, ...]]


class Double:
    """Records every call as ``(name, *arguments)``; ``refuse`` names calls that return False."""

    def __init__(self, profiles: list[dict[str, tuple[Any, Any, Any]]], outputs: list[str]) -> None:
        self.calls: Calls = []
        self.refuse: set[str] = set()
        self.profiles = profiles
        self.outputs = outputs
        self.num_optimization_profiles = len(profiles)
        self.num_io_tensors = len(profiles[0]) + len(outputs)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> bool:
            self.calls.append((name, *arguments))
            return name not in self.refuse

        return call

    def get_tensor_name(self, number: int) -> str:
        return [*self.profiles[0], *self.outputs][number]

    def get_tensor_mode(self, name: str) -> str:
        return "output" if name in self.outputs else "input"

    def get_tensor_profile_shape(self, name: str, number: int) -> tuple[Any, Any, Any]:
        return self.profiles[number][name]

    def get_device_memory_size_for_profile_v2(self, number: int) -> int:
        return 1000 * (number + 1)

    def create_execution_context(self, strategy: str) -> Double:
        self.calls.append(("create_execution_context", strategy))
        return self


TRT = SimpleNamespace(
    TensorIOMode=SimpleNamespace(INPUT="input"),
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
)


@pytest.fixture(autouse=True)
def one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))


def simple_double() -> Double:
    return Double([{"x": ((1,), (4,), (4,))}, {"x": ((5,), (8,), (8,))}], ["y"])


def test_scratch_is_torchs_and_for_the_largest_profile() -> None:
    double = simple_double()
    session = TensorRTSession(TRT, double, CPU)
    (_, strategy), (name, address, size) = double.calls
    assert strategy == "user managed"
    assert (name, size) == ("set_device_memory", 2000) and address % 256 == 0
    scratch = session._scratch
    assert scratch.data_ptr() <= address and address + size <= scratch.data_ptr() + scratch.numel()


def test_a_run_sets_profile_shapes_and_addresses_and_enqueues_on_torchs_stream() -> None:
    double = simple_double()
    session = TensorRTSession(TRT, double, CPU)
    double.calls.clear()
    x, y = torch.zeros(6), torch.zeros(6)
    session.run({"x": x, "y": y})
    first = [
        ("set_optimization_profile_async", 1, STREAM),
        ("set_input_shape", "x", (6,)),
        ("set_tensor_address", "x", x.data_ptr()),
        ("set_tensor_address", "y", y.data_ptr()),
        ("execute_async_v3", STREAM),
    ]
    assert double.calls == first
    session.run({"x": x, "y": y})
    assert double.calls[5:] == first[-1:], "what is bound stays bound"
    other = torch.zeros(5)
    session.run({"x": other, "y": y})
    assert double.calls[6:] == [
        ("set_input_shape", "x", (5,)), ("set_tensor_address", "x", other.data_ptr()), ("execute_async_v3", STREAM)
    ]  # fmt: skip
    small = torch.zeros(2)
    session.run({"x": small, "y": y})
    assert [call[0] for call in double.calls[9:]] == [call[0] for call in first]
    assert double.calls[9] == ("set_optimization_profile_async", 0, STREAM)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("set_optimization_profile_async", "refused the optimization profile 0"),
        ("set_input_shape", r"refused the shape \(2,\) of x"),
        ("set_tensor_address", "refused the memory of x"),
        ("execute_async_v3", "could not enqueue"),
    ],
)
def test_every_refusal_is_an_error(call: str, complaint: str) -> None:
    double = simple_double()
    session = TensorRTSession(TRT, double, CPU)
    double.refuse.add(call)
    with pytest.raises(EngineError, match=complaint):
        session.run({"x": torch.zeros(2), "y": torch.zeros(2)})


def test_shapes_beyond_every_profile_are_named() -> None:
    session = TensorRTSession(TRT, simple_double(), CPU)
    with pytest.raises(
        EngineError, match=r"no optimization profile takes \{'x': \(9,\)\}; build with larger token_buckets"
    ):
        session.run({"x": torch.zeros(9), "y": torch.zeros(9)})
    with pytest.raises(EngineError, match="x is not contiguous"):
        session.run({"x": torch.zeros(8)[::2], "y": torch.zeros(2)})


# Which plan runs where


def manifest(version: str = "11.4.0", capabilities: tuple[str, ...] = ("8.9",), **options: Any) -> Manifest:
    build = BuildConfig("tensorrt", "float32", 4, 64, 256, tensorrt=TensorRTConfig(attention="plugin", **options))
    return Manifest(MODEL, build.resolved(64, "float32"), version, "0.1.0", "f", {}, capabilities)


def test_version_and_gpu_are_checked() -> None:
    check_fits("11.4.0", (8, 9), manifest())
    check_fits("12.0", (8, 9), manifest(version_compatible=True))
    check_fits("11.4.0", (9, 0), manifest(hardware_compatible=True))
    check_fits("11.4.0", (9, 0), manifest(capabilities=()))
    for version, capability, made in (
        ("11.5.0", (8, 9), manifest()),
        ("11.3.0", (8, 9), manifest(version_compatible=True)),
    ):
        with pytest.raises(
            EngineError, match=f"built with TensorRT 11.4.0, and this is {version}; build the engine again"
        ):
            check_fits(version, capability, made)
    with pytest.raises(EngineError, match=r"compute capabilities 8.9, and this GPU has 9.0; build the engine again"):
        check_fits("11.4.0", (9, 0), manifest())


class Refitter:
    def __init__(self, wanted: list[str], given: dict[str, Any]) -> None:
        self.wanted, self.given = wanted, given

    def get_all_weights(self) -> list[str]:
        return self.wanted

    def set_named_weights(self, name: str, weights: Any) -> bool:
        self.given[name] = weights
        return True

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.wanted if name not in self.given]

    def refit_cuda_engine(self) -> bool:
        self.given["refitted"] = True
        return True


def refit_module(wanted: list[str], given: dict[str, Any]) -> Any:
    class Logger:
        WARNING = 2

        def __init__(self, level: int) -> None:
            self.level = level

    def weights(dtype: str, address: int, count: int) -> tuple[str, int]:
        assert address
        return dtype, count

    return SimpleNamespace(
        Logger=Logger, Weights=weights, bfloat16="bf16", Refitter=lambda engine, logger: Refitter(wanted, given)
    )


def test_a_stripped_plan_gets_its_weights_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a.weight": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
    given: dict[str, Any] = {}
    refit(refit_module(["a.weight"], given), object(), path)
    assert given == {"a.weight": ("bf16", 6), "refitted": True}
    with pytest.raises(EngineError, match="the plan also wants c"):
        refit(refit_module(["b", "c"], {}), object(), path)


def test_layers_come_from_the_inspector() -> None:
    text = '{"Layers": [{"Name": "layers.0.mlp.down"}, "plain"]}'
    inspector = SimpleNamespace(get_engine_information=lambda form: text if form == "json" else "")
    module = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON="json"))
    layers = plan_layers(module, SimpleNamespace(create_engine_inspector=lambda: inspector))
    assert layers == [{"Name": "layers.0.mlp.down"}, {"Name": "plain"}]


class FakeCache:
    """A runtime cache that holds bytes."""

    def __init__(self) -> None:
        self.data = b"new"

    def deserialize(self, data: bytes) -> bool:
        self.data = data + b"+"
        return True

    def serialize(self) -> bytes:
        return self.data


def test_the_runtime_cache_lies_beside_the_engine_and_outlives_it(tmp_path: Path) -> None:
    class RtxDouble(Double):
        def create_runtime_config(self) -> Any:
            self.calls.append(("create_runtime_config",))
            return SimpleNamespace(
                create_runtime_cache=FakeCache,
                set_runtime_cache=lambda cache: self.calls.append(("set_runtime_cache", cache.data)),
                set_execution_context_allocation_strategy=lambda s: self.calls.append(("strategy", s)),
            )

        def create_execution_context(self, config: Any) -> Double:
            self.calls.append(("create_execution_context", type(config).__name__))
            return self

    path = tmp_path / "engine.rtx-cache"
    for kept in (b"new", b"new+"):
        double = RtxDouble([{"x": ((1,), (4,), (4,))}], ["y"])
        session = TensorRTSession(TRT, double, CPU, path)
        assert [call[0] for call in double.calls] == [
            "create_runtime_config", "set_runtime_cache", "strategy", "create_execution_context", "set_device_memory"
        ]  # fmt: skip
        assert double.calls[1] == ("set_runtime_cache", kept)
        session.close()
        assert path.read_bytes() == kept and [p.name for p in tmp_path.iterdir()] == [path.name]


# Engines over a session


class Recorder:
    """A session that notes what is bound and answers with zeros."""

    def __init__(self) -> None:
        self.runs: list[dict[str, torch.Tensor]] = []

    def run(self, tensors: Any) -> None:
        self.runs.append(dict(tensors))
        tensors["logits"].zero_()


def batch() -> ForwardBatch:
    """Slot 0 with a window of 3, slot 2 with a cached one of 2 that starts at 4."""
    ids, positions = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([0, 1, 2, 4, 5])
    edges, ends = torch.tensor([0, 3, 5]), torch.tensor([3, 6])
    return ForwardBatch(ids, positions, edges, ends, torch.tensor([0, 2]), torch.tensor([1, 4]))


def spec() -> EngineSpec:
    return EngineSpec(MODEL, "tensorrt", torch.float32, CPU, 4, 64, 256)


def test_the_plugin_gets_the_contracts_tensors_and_the_whole_cache() -> None:
    session = Recorder()
    engine = engine_over(spec(), manifest(), session)
    assert engine.spec.layout == "packed" and engine.spec.graph_capturable
    assert engine.forward(batch()).shape == (2, 32)
    (bound,) = session.runs
    for name, tensor in vars(batch()).items():
        assert torch.equal(bound[name], tensor)
    assert bound["kv_cache.1"].shape == (4, 2, 2, 64, 8)
    assert bound["kv_cache.1"].data_ptr() == bound["kv_cache.1.updated"].data_ptr()


def test_a_run_without_wanted_rows_still_writes_its_keys_and_values() -> None:
    session = Recorder()
    options = TensorRTConfig(attention="native").resolved("tensorrt", 64)
    engine = engine_over(
        spec(), replace(manifest(), build_config=replace(manifest().build_config, tensorrt=options)), session
    )
    assert engine.forward(replace(batch(), logit_rows=torch.zeros(0, dtype=torch.int64))).shape == (0, 32)
    assert session.runs[0]["logit_rows"].tolist() == [0] and session.runs[0]["logits"].shape == (1, 32)


def test_native_attention_gets_padded_windows_of_neighbouring_slots() -> None:
    session = Recorder()
    made = manifest()
    options = TensorRTConfig(attention="native").resolved("tensorrt", 64)
    engine = engine_over(spec(), replace(made, build_config=replace(made.build_config, tensorrt=options)), session)
    assert engine.spec.layout == "padded" and not engine.spec.graph_capturable
    engine.forward(batch())
    (bound,) = session.runs
    assert bound["token_ids"].tolist() == [[5, 6, 7], [0, 0, 0], [8, 9, 0]]
    assert bound["positions"].tolist() == [[0, 1, 2], [0, 0, 0], [4, 5, 6]]
    assert bound["window_starts"].tolist() == [0, 0, 4] and bound["kv_lengths"].tolist() == [3, 1, 6]
    assert bound["logit_rows"].tolist() == [1, 7]
    assert bound["v_cache.1"].shape == (3, 2, 64, 8)
    assert bound["v_cache.1"].data_ptr() == bound["v_cache.1.updated"].data_ptr() != bound["k_cache.1"].data_ptr()
