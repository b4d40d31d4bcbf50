"""What only a GPU can show: the same tokens there, no waiting inside a step, and a step captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.model.config import FAMILIES
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.decoding.step import TensorSizes, first_pass
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from d3llm_trt.runtime.stepping.stepper import Occupant
from d3llm_trt.runtime.stepping.tensor_stepper import TensorStepper, run_step, sizes_of
from tests.support.engines import TableEngine, decode
from tests.support.golden_cases import GOLDEN, read_cases
from tests.support.tiny_models import CHATS, CHECKPOINTS, QUESTIONS

pytestmark = pytest.mark.gpu
# Cases whose tokens do not change with this much noise on the logits; float32 kernels differ by far less.
STABLE = [case for case in read_cases() if case.golden["stable_to_logit_noise"] >= 1e-3]
SLOTS = [0, 1, 2, 3]


def gpu_engine(model: str, slots: int) -> TorchEngine:
    checkpoint = open_checkpoint(GOLDEN / model)
    device = torch.device("cuda")
    spec = EngineSpec(checkpoint.config, "torch", torch.float32, device, slots, 512, slots * 512)
    return TorchEngine(spec, {name: tensor.to(device) for name, tensor in checkpoint.packed_tensors()})


@pytest.mark.parametrize("model", ["llada_tiny", "dream_tiny"])
def test_golden_tokens_in_one_ragged_batch(model: str) -> None:
    cases = [case for case in STABLE if case.model == model]
    assert len(cases) > 15
    answers = decode(gpu_engine(model, len(cases)), [(case.prompt, case.params) for case in cases])
    for case, answer in zip(cases, answers, strict=True):
        assert answer.canvas[len(case.prompt) :][: case.compared] == case.generated[: case.compared], case.id


def admitted() -> tuple[TensorStepper, TensorSizes]:
    """A request of every algorithm before its first pass, and the sizes of that pass."""
    stepper = TensorStepper(TableEngine(len(SLOTS)))
    occupants = []
    for slot, name in enumerate(ALGORITHMS):
        cached = {"cache_delay_iter": 1} if name == "MultiBlock" else {}
        decoding = DecodingConfig(name, block_size=16, early_stop=False, **cached)
        params = SamplingParams(max_tokens=48, temperature=0.3, decoding=decoding)
        settings, progress = first_pass(stepper.spec.model_config, list(range(5 + slot)), params)
        stepper.state.admit(slot, settings, progress)
        occupants.append(Occupant.entering(slot, params, progress))
    return stepper, sizes_of(occupants)


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[], None]]:
    """A switch that makes every wait for the GPU an error until the test ends."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def test_a_step_never_waits_for_the_gpu(waiting_is_an_error: Callable[[], None]) -> None:
    (stepper, sizes), engine = admitted(), TableEngine(len(SLOTS))
    slots = torch.tensor(SLOTS, device="cuda")
    waiting_is_an_error()
    assert run_step(engine, stepper.state, slots, sizes).shape == (4, 5)


def test_a_captured_step_equals_an_eager_one() -> None:
    engine, (eager, sizes), (captured, _), (warm, _) = TableEngine(len(SLOTS)), admitted(), admitted(), admitted()
    slots = torch.tensor(SLOTS, device="cuda")
    roomy = replace(sizes, tokens=4 * 64, rows=4 * 56)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run_step(engine, warm.state, slots, roomy)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        summary = run_step(engine, captured.state, slots, roomy)
    for _ in range(60):
        run_step(engine, eager.state, slots, roomy)
        graph.replay()
    assert torch.equal(captured.state.progress.canvas, eager.state.progress.canvas)
    assert bool(summary[:, 0].all())


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_solve_word_problems(family: str) -> None:
    with LLM(CHECKPOINTS[family], device="cuda") as model:
        outputs = model.generate(CHATS, SamplingParams())
    assert [output.outputs[0].text.split()[-1] for output in outputs] == [str(r) for r in QUESTIONS.values()]
