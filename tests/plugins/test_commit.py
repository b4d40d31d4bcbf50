"""The commit kernel against the tensor code: golden cases and random states, every value the same.

Its logic is one source for the GPU and the CPU; without a GPU the CPU build shows that the logic is right, and with
several threads that it waits where it must.
"""

from __future__ import annotations

import ctypes
import random
from pathlib import Path

import pytest
import torch

from d3llm_trt import DecodingConfig, SamplingParams
from d3llm_trt.errors import PluginError
from d3llm_trt.model.config import FAMILIES
from d3llm_trt.plugins import library as compiled
from d3llm_trt.plugins.c_structs import CommitParams, Progress, Settings
from d3llm_trt.runtime.decoding import step
from d3llm_trt.runtime.stepping import tensor_stepper
from tests.support.commit_states import (
    Advance,
    GpuCommit,
    HostCommit,
    Workload,
    compare_step,
    copy_of,
    differences,
)
from tests.support.engines import cpu_engine, decode
from tests.support.golden_cases import GOLDEN, read_cases
from tests.support.host_library import build_host_library, run_under_thread_sanitizer

STATES = 10_000
MODELS = ("llada_tiny", "dream_tiny")

SETTINGS = len(Settings._fields_)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build_host_library("commit_host", tmp_path_factory.mktemp("commit"))))


def compare_states(other: Advance, batches: int, slots: int, device: str = "cpu") -> int:
    """Step random requests of both families until they are done; returns how many states were compared."""
    states = 0
    for seed in range(batches):
        work = Workload.random(FAMILIES[seed // 4 % 2], seed, slots)
        broken = (0.0, 0.0, 0.02, 0.4)[seed % 4]
        for _ in range(30):
            if not work.running():
                break
            picked = work.some()
            work.scramble(picked[: len(picked) // 8])
            compare_step(work, other, picked, broken, device)
            states += len(picked)
    return states


def compare_long_states(other: Advance, max_seq_len: int, device: str = "cpu") -> None:
    """Few passes of long requests: more blocks than a team has members, and quotas over long ranges."""
    settings = [
        DecodingConfig("FullAttnMultiBlock", block_size=1, block_add_threshold=0.0),
        DecodingConfig("EntropyThreshold", block_size=max_seq_len),
        DecodingConfig("MultiBlock", block_size=1, cache_delay_iter=0, block_add_threshold=-1.0),
        DecodingConfig("MultiBlock", block_size=3, cache_delay_iter=1, refresh_interval=3),
        DecodingConfig("LowConfidence", block_size=max_seq_len, steps=3),
    ]
    requests = [([1, 2, 11], SamplingParams(max_tokens=max_seq_len - 3, decoding=decoding)) for decoding in settings]
    for family in FAMILIES:
        work = Workload.of_requests(family, requests, random.Random(5), max_seq_len)
        for number in range(4):
            work.scramble([number] if number % 2 else [])
            compare_step(work, other, [3, 0, 4, 2, 1], 0.0, device)


# On the CPU


def test_random_states(library: ctypes.CDLL) -> None:
    assert compare_states(HostCommit(library), batches=26, slots=64) >= STATES


@pytest.mark.parametrize("threads", [2, 3, 4, 7])
def test_random_states_by_several_threads(library: ctypes.CDLL, threads: int) -> None:
    assert compare_states(HostCommit(library, threads), batches=8, slots=8) >= 400


def test_long_states(library: ctypes.CDLL) -> None:
    compare_long_states(HostCommit(library), 3000)
    compare_long_states(HostCommit(library, 3), 300)


@pytest.mark.parametrize("model", MODELS)
def test_golden_cases(library: ctypes.CDLL, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case for case in read_cases() if case.model == model]
    requests = [(case.prompt, case.params) for case in cases]
    engine = cpu_engine(GOLDEN / model, len(cases))
    wanted = decode(engine, requests)
    monkeypatch.setattr(tensor_stepper, "advance", HostCommit(library))
    answers = decode(engine, requests)
    assert answers == wanted
    for case, answer in zip(cases, answers, strict=True):
        assert answer.canvas[len(case.prompt) :][: case.compared] == case.generated[: case.compared]


def check_unknown_slots(other: Advance, device: str) -> None:
    """Slots that do not exist and repeated ones report zeros and change nothing; the others go on as without them."""
    work = Workload.random("llada", 3, slots=6)
    slots = [4, -1, 2, 4, 6, 0]
    known = [4, 2, 0]
    shape = work.shape(known, work.count(known))
    chosen = work.chosen(known, shape)
    selected = work.selected(shape.rows, 0.0)
    places = torch.tensor([0, 2, 5, 6])
    spread = places[chosen // shape.width] * shape.width + chosen % shape.width
    mine = copy_of(work.state, device)
    there = type(selected)(**{name: values.to(device) for name, values in vars(selected).items()})
    report = other(work.config, mine, torch.tensor(slots, device=device), shape, spread.to(device), there).cpu()
    wanted = step.advance(work.config, work.state, torch.tensor(known), shape, chosen, selected)
    assert differences(mine, work.state) == []
    assert torch.equal(report[[0, 2, 5]], wanted)
    assert report[[1, 3, 4]].tolist() == [[0] * 5] * 3


def test_unknown_and_repeated_slots(library: ctypes.CDLL) -> None:
    check_unknown_slots(HostCommit(library), "cpu")
    check_unknown_slots(HostCommit(library, 3), "cpu")


def test_threads_never_race(tmp_path: Path) -> None:
    script = (
        "import ctypes, sys\nfrom tests.plugins import test_commit as t\nfrom tests.support import commit_states as s\n"
        "print(t.compare_states(s.HostCommit(ctypes.CDLL(sys.argv[1]), 3), batches=6, slots=8))"
    )
    assert int(run_under_thread_sanitizer("commit_host", tmp_path, script)) > 300


# Arguments


def test_tensors_that_do_not_fit_are_named(library: ctypes.CDLL) -> None:
    work = Workload.random("llada", 0, slots=3)
    shape = work.shape([0, 1], 0)
    selected = work.selected(shape.rows, 0.0)
    chosen = torch.full((shape.rows,), 2 * shape.width)
    with pytest.raises(
        PluginError, match=r"slots is contiguous torch.int32 \[2\] on cpu; allowed: contiguous torch.int64"
    ):
        HostCommit(library)(work.config, work.state, torch.tensor([0, 1], dtype=torch.int32), shape, chosen, selected)
    vars(work.state.progress)["canvas"] = work.state.progress.canvas.t().contiguous().t()
    with pytest.raises(PluginError, match="canvas is strided"):
        HostCommit(library)(work.config, work.state, torch.tensor([0, 1]), shape, chosen, selected)


@pytest.mark.skipif(not compiled.available(), reason="needs the compiled kernels")
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"struct_size": 8}, "commit: struct_size is 8; this library's is"),
        ({"batch": -1}, "commit: batch is -1; allowed: 0 to"),
        ({"rows": -2}, "commit: rows is -2"),
        ({"num_slots": 0}, "commit: num_slots is 0; allowed: 1 to"),
        ({"width": 65}, "commit: width is 65; allowed: 1 to 64"),
        ({"family": 2}, r"commit: family is 2; allowed: 0 \(LLaDA\), 1 \(Dream\)"),
        ({}, "commit: algorithm is NULL"),
        ({"settings": Settings(*[8] * SETTINGS)}, "commit: canvas is NULL"),
        (
            {"settings": Settings(**dict.fromkeys([name for name, _ in Settings._fields_], 8) | {"threshold": 2})},
            "commit: threshold is not aligned to 4 bytes",
        ),
        (
            {
                "settings": Settings(*[8] * SETTINGS),
                "progress": Progress(*[8] * len(Progress._fields_)),
                "slots": 8,
                "summary": 8,
            },
            "chosen is NULL",
        ),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], complaint: str) -> None:
    params = CommitParams(batch=1, num_slots=1, max_seq_len=64, width=64, rows=1)
    for name, value in changes.items():
        setattr(params, name, value)
    with pytest.raises(PluginError, match=complaint):
        compiled.load().launch("commit", params, 0)


# On a GPU


@pytest.mark.gpu
def test_random_states_on_a_gpu() -> None:
    assert compare_states(GpuCommit(), batches=26, slots=64, device="cuda") >= STATES


@pytest.mark.gpu
def test_long_states_on_a_gpu() -> None:
    compare_long_states(GpuCommit(), 3000, "cuda")
    compare_long_states(GpuCommit(), 40_000, "cuda")


@pytest.mark.gpu
def test_unknown_and_repeated_slots_on_a_gpu() -> None:
    check_unknown_slots(GpuCommit(), "cuda")


@pytest.mark.gpu
def test_a_captured_commit_equals_the_tensor_code() -> None:
    """Captured once and replayed on other values in the same memory."""
    work = Workload.random("llada", 9)
    slots = work.running()
    shape = work.shape(slots, work.count(slots))
    chosen, selected, where = work.chosen(slots, shape), work.selected(shape.rows, 0.0), torch.tensor(slots)
    mine = copy_of(work.state, "cuda")
    there = type(selected)(**{name: values.cuda() for name, values in vars(selected).items()})
    arguments = (work.config, mine, where.cuda(), shape, chosen.cuda(), there)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        report = GpuCommit()(*arguments)
    assert differences(mine, work.state) == []
    graph.replay()
    wanted = step.advance(work.config, work.state, where, shape, chosen, selected)
    assert differences(mine, work.state) == []
    assert torch.equal(report.cpu(), wanted)
