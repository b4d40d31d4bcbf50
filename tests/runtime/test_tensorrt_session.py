"""TensorRTSession over doubles of an engine and its context: every call, shape, address and order (L1).

The doubles are checked against TensorRT's own bindings, see ``tests/support/tensorrt_uses.py``.
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
from d3llm_trt.tensorrt_objects import make_messages
from tests.support.tensorrt_doubles import PlanDouble, cache_double, refitting
from tests.support.tensorrt_uses import Double, RecordedModule, record_classes
from tests.support.tensorrt_wheels import ALL, FULL, RTX

real = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 for TensorRT's enumerations")
TRT = RecordedModule(real, ALL)
MODEL = ModelConfig("llada", 32, 16, 32, 2, 2, 2, 8, 1e-5, 1e4, 64, 31, 1, 1)
CPU = torch.device("cpu")
STREAM = 77


@pytest.fixture(autouse=True)
def one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done with real objects is noted, too."""
    record_classes(real, monkeypatch, ALL)


def simple_plan() -> PlanDouble:
    return PlanDouble(real, [{"x": ((1,), (4,), (4,))}, {"x": ((5,), (8,), (8,))}], ["y"])


def session_of(plan: PlanDouble) -> TensorRTSession:
    return TensorRTSession(TRT, plan.engine(), CPU)


def test_scratch_is_torchs_and_for_the_largest_profile() -> None:
    plan = simple_plan()
    session = session_of(plan)
    (_, strategy), (name, address, size) = plan.calls
    assert strategy == real.ExecutionContextAllocationStrategy.USER_MANAGED
    assert (name, size) == ("set_device_memory", 2000) and address % 256 == 0
    scratch = session._scratch
    assert scratch.data_ptr() <= address and address + size <= scratch.data_ptr() + scratch.numel()


def test_a_run_sets_profile_shapes_and_addresses_and_enqueues_on_torchs_stream() -> None:
    plan = simple_plan()
    session = session_of(plan)
    plan.calls.clear()
    x, y = torch.zeros(6), torch.zeros(6)
    session.run({"x": x, "y": y})
    first = [
        ("set_optimization_profile_async", 1, STREAM),
        ("set_input_shape", "x", (6,)),
        ("set_tensor_address", "x", x.data_ptr()),
        ("set_tensor_address", "y", y.data_ptr()),
        ("execute_async_v3", STREAM),
    ]
    assert plan.calls == first
    session.run({"x": x, "y": y})
    assert plan.calls[5:] == first[-1:], "what is bound stays bound"
    other = torch.zeros(5)
    session.run({"x": other, "y": y})
    assert plan.calls[6:] == [
        ("set_input_shape", "x", (5,)), ("set_tensor_address", "x", other.data_ptr()), ("execute_async_v3", STREAM)
    ]  # fmt: skip
    small = torch.zeros(2)
    session.run({"x": small, "y": y})
    assert [call[0] for call in plan.calls[9:]] == [call[0] for call in first]
    assert plan.calls[9] == ("set_optimization_profile_async", 0, STREAM)


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
    plan = simple_plan()
    session = session_of(plan)
    plan.refuse.add(call)
    with pytest.raises(EngineError, match=complaint):
        session.run({"x": torch.zeros(2), "y": torch.zeros(2)})


def test_shapes_beyond_every_profile_are_named() -> None:
    session = session_of(simple_plan())
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
            EngineError,
            match=f"built with TensorRT 11.4.0, and {version} is installed; install tensorrt-cu13 11.4.0, or build",
        ):
            check_fits(version, capability, made)
    with pytest.raises(EngineError, match=r"compute capabilities 8.9, and this GPU has 9.0; build the engine again"):
        check_fits("11.4.0", (9, 0), manifest())


def test_a_stripped_plan_gets_its_weights_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a.weight": torch.ones(2, 3, dtype=torch.bfloat16), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
    given: dict[str, Any] = {}
    engine = simple_plan().engine()
    messages = make_messages(real)
    refit(refitting(real, ["a.weight"], given), engine, path, messages)
    assert given == {"a.weight": (real.bfloat16, 6), "refitted": True}
    with pytest.raises(EngineError, match="the plan also wants c"):
        refit(refitting(real, ["b", "c"], {}), engine, path, messages)
    messages.errors.append("TensorRT's own words")
    with pytest.raises(
        EngineError, match="takes no weights for the plan: TensorRT's own words; build the engine again"
    ):
        refit(RecordedModule(real, FULL, Refitter=refuse), engine, path, messages)


def refuse(engine: Any, logger: Any) -> None:
    """As pybind11 does where TensorRT returns null."""
    raise TypeError("pybind11::init(): factory function returned nullptr")


def test_a_plan_of_another_model_is_said() -> None:
    session = session_of(simple_plan())
    with pytest.raises(EngineError, match="the plan has a tensor x, so it is of another model or attention; build"):
        session.run({"token_ids": torch.zeros(2), "y": torch.zeros(2)})


def test_layers_come_from_the_inspector() -> None:
    fits = (*FULL, RTX)
    text = '{"Layers": [{"Name": "layers.0.mlp.down"}, "plain"]}'
    form = real.LayerInformationFormat.JSON
    inspector = Double("EngineInspector", {"get_engine_information": {form: text}.__getitem__}, fits=fits)
    engine = simple_plan().engine(fits, create_engine_inspector=lambda: inspector)
    layers = plan_layers(RecordedModule(real, fits), engine)
    assert layers == [{"Name": "layers.0.mlp.down"}, {"Name": "plain"}]


def test_the_runtime_cache_lies_beside_the_engine_and_outlives_it(tmp_path: Path) -> None:
    path = tmp_path / "engine.rtx-cache"
    for held, kept in (([b"new"], b"new"), ([b"empty"], b"new")):
        plan, cache = PlanDouble(real, [{"x": ((1,), (4,), (4,))}], ["y"]), cache_double(held)
        session = TensorRTSession(TRT, plan.rtx_engine(cache), CPU, path)
        assert [call[0] for call in plan.calls] == [
            "create_runtime_config", "set_runtime_cache", "strategy", "create_execution_context", "set_device_memory"
        ]  # fmt: skip
        assert plan.calls[1] == ("set_runtime_cache", cache)
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
