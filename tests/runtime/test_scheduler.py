"""Continuous batching, one step at a time: who enters when, who leaves when, and what a failure touches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from d3llm_trt import DecodingConfig, RequestOutput, SamplingParams
from d3llm_trt.errors import EngineError
from d3llm_trt.progress import OnProgress
from d3llm_trt.runtime.decoder import Decoder
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch
from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from d3llm_trt.runtime.request import Request
from d3llm_trt.runtime.scheduler import Scheduler
from d3llm_trt.runtime.stepping.tensor_stepper import TensorStepper
from d3llm_trt.tokenizer import Tokenizer
from tests.support.engines import cpu_engine, decoder_over
from tests.support.golden_cases import GOLDEN


class Watched:
    """An engine that notes the slots of every batch, and fails when told to."""

    def __init__(self, engine: TorchEngine, max_num_tokens: int | None = None) -> None:
        self.spec = dataclasses.replace(engine.spec, max_num_tokens=max_num_tokens or engine.spec.max_num_tokens)
        self.batches: list[list[int]] = []
        self.failure: Exception | None = None
        self.closed = False
        self._engine = engine

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.batches.append(batch.slots.tolist())
        return self._engine.forward(batch)

    def close(self) -> None:
        self.closed = True


class Cold(TensorStepper):
    """Cannot warm up."""

    failure: BaseException

    def warm_up(self, progress: OnProgress | None = None) -> None:
        """Fails."""
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "told"),
    [(torch.OutOfMemoryError("no room"), EngineError), (RuntimeError("my bar"), RuntimeError)],
)
def test_what_fails_before_the_first_request_closes_the_engine(
    engine: TorchEngine, failure: Exception, told: type[Exception]
) -> None:
    watched = Watched(engine)
    cold = Cold(watched)
    cold.failure = failure
    with pytest.raises(told, match=str(failure)):
        Decoder(cold).warm_up()
    assert watched.closed


class Sink:
    """Collects outputs."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []

    def __call__(self, output: RequestOutput) -> None:
        self.outputs.append(output)

    @property
    def finished(self) -> list[str]:
        return [output.request_id for output in self.outputs if output.finished]


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return cpu_engine(GOLDEN / "llada_tiny", 2)


def request(name: str, tokens: int, sink: Sink, prompt: int = 3) -> Request:
    """A request that takes ``tokens`` passes."""
    decoding = DecodingConfig("LowConfidence", early_stop=False)
    return Request(name, None, list(range(1, prompt + 1)), SamplingParams(max_tokens=tokens, decoding=decoding), sink)


def scheduler_over(engine: Engine, tokenizer: Tokenizer | None = None) -> Scheduler:
    return Scheduler(decoder_over(engine), tokenizer)


def run(scheduler: Scheduler) -> None:
    while scheduler.has_work:
        scheduler.step()


def test_a_free_slot_is_refilled_at_the_next_step(engine: TorchEngine) -> None:
    watched, sink = Watched(engine), Sink()
    scheduler = scheduler_over(watched)
    for name, tokens in (("a", 2), ("b", 5), ("c", 3), ("d", 1)):
        scheduler.add(request(name, tokens, sink))
    run(scheduler)
    # Slot 0: a for 2 passes, then c for 3. Slot 1: b for 5. d takes whichever is free first.
    assert watched.batches[:5] == [[0, 1]] * 5 and len(watched.batches) == 6
    assert sink.finished == ["a", "c", "b", "d"]
    assert [output.metrics.num_forward_passes for output in sink.outputs] == [2, 3, 5, 1]


def test_nobody_overtakes_a_request_that_needs_more_room(engine: TorchEngine) -> None:
    watched, sink = Watched(engine, max_num_tokens=40), Sink()
    scheduler = scheduler_over(watched)
    for name, tokens in (("a", 4), ("large", 37), ("small", 1)):
        scheduler.add(request(name, tokens, sink))
    run(scheduler)
    assert watched.batches[:4] == [[0]] * 4
    assert all(len(batch) == 1 for batch in watched.batches)
    assert sink.finished == ["a", "large", "small"]


def test_a_cancelled_request_leaves_at_once(engine: TorchEngine) -> None:
    watched, sink = Watched(engine), Sink()
    scheduler = scheduler_over(watched)
    for name in ("a", "b", "waiting", "c"):
        scheduler.add(request(name, 6, sink))
    scheduler.step()
    scheduler.cancel("a")
    scheduler.cancel("waiting")
    scheduler.cancel("nobody")
    scheduler.step()
    assert watched.batches[-1] == [0, 1]  # c has taken a's slot
    run(scheduler)
    assert sink.finished == ["b", "c"]


def test_an_engine_failure_ends_the_requests_in_it_and_no_others(engine: TorchEngine) -> None:
    watched, sink = Watched(engine), Sink()
    scheduler = scheduler_over(watched)
    for name in ("a", "b", "c"):
        scheduler.add(request(name, 3, sink))
    scheduler.step()
    watched.failure = torch.OutOfMemoryError("no memory left")
    run(scheduler)
    assert sink.finished == ["a", "b", "c"]
    for output in sink.outputs[:2]:
        assert isinstance(output.error, EngineError) and "no memory left" in str(output.error)
        assert output.outputs[0].finish_reason == "error" and output.metrics.num_forward_passes == 1
    assert sink.outputs[2].error is None


def test_fail_all_answers_everybody(engine: TorchEngine) -> None:
    sink = Sink()
    scheduler = scheduler_over(Watched(engine))
    for name in ("a", "b", "c"):
        scheduler.add(request(name, 9, sink))
    scheduler.step()
    scheduler.fail_all(EngineError("closing"))
    assert not scheduler.has_work and sink.finished == ["a", "b", "c"]
    assert all(str(output.error) == "closing" for output in sink.outputs)


def test_a_slot_keeps_nothing_of_its_last_request(engine: TorchEngine) -> None:
    """Settings with a cache first, so that window, blocks and K/V of the last request would show."""
    cached = SamplingParams(max_tokens=60, decoding=DecodingConfig("MultiBlock", block_size=4, cache_delay_iter=1))
    plain = SamplingParams(max_tokens=30, decoding=DecodingConfig("MultiBlock", block_size=16, cache_delay_iter=2))
    alone, after = Sink(), Sink()
    first = scheduler_over(cpu_engine(GOLDEN / "llada_tiny", 1))
    first.add(Request("b", None, [9, 8, 7], plain, alone))
    run(first)
    second = scheduler_over(cpu_engine(GOLDEN / "llada_tiny", 1))
    second.add(Request("a", None, list(range(50)), cached, Sink()))
    second.add(Request("b", None, [9, 8, 7], plain, after))
    run(second)
    assert after.outputs[0].outputs == alone.outputs[0].outputs


def test_a_failed_admission_ends_that_request_only(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Sink()
    scheduler = scheduler_over(Watched(engine))
    admit = Decoder.admit

    def fragile(self: Decoder, slot: int, ids: Sequence[int], params: SamplingParams) -> None:
        if len(ids) == 5:
            raise torch.OutOfMemoryError("no memory left")
        admit(self, slot, ids, params)

    monkeypatch.setattr(Decoder, "admit", fragile)
    for name, prompt in (("a", 3), ("bad", 5), ("c", 3), ("d", 3)):
        scheduler.add(request(name, 2, sink, prompt))
    run(scheduler)
    errors = {output.request_id: output.error for output in sink.outputs}
    assert list(errors) == ["bad", "a", "c", "d"] and "no memory left" in str(errors["bad"])
    assert [errors[name] for name in "acd"] == [None] * 3


def test_a_sink_that_raises_harms_nobody_else(engine: TorchEngine) -> None:
    def broken(output: RequestOutput) -> None:
        raise RuntimeError("Event loop is closed")

    sink = Sink()
    scheduler = scheduler_over(Watched(engine))
    scheduler.add(dataclasses.replace(request("broken", 1, sink), sink=broken))
    scheduler.add(request("b", 3, sink))
    run(scheduler)
    assert sink.finished == ["b"]
