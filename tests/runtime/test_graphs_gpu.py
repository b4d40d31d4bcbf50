"""Steps by kernels and as CUDA graphs give what the tensor code gives, whoever shares the batch."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.model.config import FAMILIES
from d3llm_trt.runtime.decoder import Decoder
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.engines.base import ForwardBatch
from d3llm_trt.runtime.stepping.factory import make_stepper
from d3llm_trt.runtime.stepping.kernel_stepper import KernelStepper
from d3llm_trt.runtime.stepping.policy import parse_policy
from tests.support.engines import Answer, TableEngine, decode, decoder_over
from tests.support.tiny_models import CHATS, CHECKPOINTS

pytestmark = pytest.mark.gpu
SLOTS = 8
Asked = tuple[list[int], SamplingParams]


def random_request(generator: random.Random, mask_id: int) -> Asked:
    prompt = [generator.choice([*range(40), mask_id]) for _ in range(generator.randint(1, 150))]
    name = generator.choice(ALGORITHMS)
    cached = {"cache_delay_iter": generator.randint(0, 3)} if name == "MultiBlock" and generator.random() < 0.6 else {}
    decoding = DecodingConfig(name, block_size=generator.choice([1, 7, 16, 32]), threshold=3.0, **cached)
    tokens = generator.randint(0 if mask_id in prompt else 1, 120)
    return prompt, SamplingParams(
        max_tokens=tokens,
        temperature=generator.choice([0.0, 0.0, 0.7]),
        seed=generator.randint(0, 9),
        decoding=decoding,
        top_p=generator.choice([1.0, 0.9, 0.3]),
        top_k=generator.choice([0, 0, 3, 50]),
        min_tokens=generator.choice([0, tokens // 2]),
        stop_token_ids=generator.sample(range(40), generator.choice([0, 0, 7])),
    )


def random_requests(count: int, seed: int) -> list[Asked]:
    generator = random.Random(seed)
    mask_id = TableEngine(1).spec.model_config.mask_token_id
    return [random_request(generator, mask_id) for _ in range(count)]


def decode_in_turn(decoder: Decoder, requests: Sequence[Asked]) -> list[tuple[list[int], list[int]]]:
    """Decode with requests entering whenever a slot is free."""
    waiting, running, answers = list(enumerate(requests)), dict[int, int](), dict[int, tuple[list[int], list[int]]]()
    while waiting or running:
        while waiting and len(running) < SLOTS:
            number, (prompt, params) = waiting.pop(0)
            slot = next(slot for slot in range(SLOTS) if slot not in running)
            decoder.admit(slot, prompt, params)
            running[slot] = number
        decoder.step(sorted(running))
        for slot in [slot for slot in running if decoder.reports[slot].done]:
            (answers[running.pop(slot)],) = decoder.read([slot])
    return [answers[number] for number in range(len(requests))]


@pytest.mark.parametrize("cuda_graphs", ["all", "largest", "off"])
def test_kernels_and_graphs_equal_the_tensor_code(cuda_graphs: str) -> None:
    requests = random_requests(40, seed=1)
    alone: list[Answer] = [decode(TableEngine(1), [request])[0] for request in requests]
    together = decode_in_turn(decoder_over(TableEngine(SLOTS, capturable=True), cuda_graphs), requests)
    for answer, (canvas, commit_steps) in zip(alone, together, strict=True):
        assert canvas == answer.canvas
        assert commit_steps == answer.commit_steps


def test_kernels_equal_the_tensor_code_for_one_request() -> None:
    request = random_requests(1, seed=4)
    expected = decode(TableEngine(1), request)
    assert decode_in_turn(decoder_over(TableEngine(SLOTS, capturable=True), "off"), request)[0][0] == expected[0].canvas


def kernel_stepper(cuda_graphs: str) -> KernelStepper:
    stepper = make_stepper(TableEngine(SLOTS, capturable=True), parse_policy(cuda_graphs))
    assert isinstance(stepper, KernelStepper)
    return stepper


def test_a_bucket_is_captured_at_its_second_step() -> None:
    stepper = kernel_stepper("all")
    decoder = Decoder(stepper)
    (request,) = random_requests(1, seed=2)
    for captured in (0, 1, 1):
        decoder.admit(0, *request)
        decoder.step([0])
        assert len(stepper.captured) == captured


@pytest.mark.parametrize("cuda_graphs", ["all", "largest"])
def test_what_short_requests_need_is_captured_ahead(cuda_graphs: str) -> None:
    stepper = kernel_stepper(cuda_graphs)
    decoder = Decoder(stepper)
    calls: list[tuple[str, int, int]] = []
    decoder.warm_up(lambda *call: calls.append(call))
    assert stepper.captured == tuple(sorted(stepper.defaults)) and len(stepper.captured) > 30
    assert calls == [("capture", done, len(calls)) for done in range(1, len(calls) + 1)]
    requests = random_requests(12, seed=6)
    alone = [decode(TableEngine(1), [request])[0] for request in requests]
    assert [decode_in_turn(decoder, [request])[0][0] for request in requests] == [answer.canvas for answer in alone]
    assert stepper.captured == tuple(sorted(stepper.defaults))


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_change_no_token(family: str) -> None:
    tokens = []
    for cuda_graphs in ("all", "off"):
        with LLM(CHECKPOINTS[family], device="cuda", dtype="bfloat16", cuda_graphs=cuda_graphs) as model:
            outputs = model.generate(CHATS, SamplingParams(decoding=DecodingConfig(threshold=1e-3)))
            assert model.spec.graph_capturable
        tokens.append([output.outputs[0].token_ids for output in outputs])
    assert tokens[0] == tokens[1]


class Waiting(TableEngine):
    """Waits for the GPU, which no captured step may."""

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """As the table's."""
        torch.cuda.current_stream().synchronize()
        return super().forward(batch)


def decode_while_waiting() -> None:
    requests = random_requests(4, seed=3)
    expected = decode(TableEngine(4), requests)
    answers = decode(Waiting(4, capturable=True), requests)
    assert [answer.canvas for answer in answers] == [answer.canvas for answer in expected]


def test_a_graph_that_cannot_be_captured_is_done_without() -> None:
    # In a process of its own: torch's random numbers do not survive a capture that fails.
    search = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, __file__], env=search, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "CUDA graphs are off" in run.stderr


if __name__ == "__main__":
    decode_while_waiting()
