"""LLM as its users see it, on the tiny checkpoints: every kind of prompt, streaming, async, errors, metrics."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d3llm_trt import LLM, BuildConfig, DecodingConfig, RequestOutput, SamplingParams, build_engine
from d3llm_trt.errors import CheckpointError, ConfigError, EngineError, RequestError
from d3llm_trt.manifest import load_manifest
from d3llm_trt.model.config import FAMILIES, ModelConfig
from d3llm_trt.runtime.decoding import step
from d3llm_trt.runtime.decoding.state import new_request
from d3llm_trt.runtime.loading import load_engine
from d3llm_trt.tokenizer import Tokenizer
from tests.support.tiny_models import CHATS, CHECKPOINTS, QUESTIONS, ROOT

ONE_BY_ONE = DecodingConfig("LowConfidence")
LLADA_MASK, LLADA_END = 562, 561


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "llada"
    return build_engine(CHECKPOINTS["llada"], path, BuildConfig(max_batch_size=3, max_seq_len=256))


@pytest.fixture(scope="module")
def llm(engine_dir: Path) -> Iterator[LLM]:
    with LLM(engine_dir, device="cpu") as opened:
        yield opened


def params(max_tokens: int = 72, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **changes)


# Prompts and answers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "decoding",
    [
        DecodingConfig(),
        DecodingConfig("MultiBlock"),
        DecodingConfig("MultiBlock", cache_delay_iter=1),
        DecodingConfig("EntropyThreshold"),
        ONE_BY_ONE,
    ],
    ids=lambda decoding: f"{decoding.algorithm}-{decoding.cache_delay_iter}",
)
def test_both_families_solve_word_problems_straight_from_a_checkpoint(family: str, decoding: DecodingConfig) -> None:
    with LLM(CHECKPOINTS[family], device="cpu") as model:
        outputs = model.generate(CHATS, params(decoding=decoding))
    for output, result in zip(outputs, QUESTIONS.values(), strict=True):
        assert output.error is None and output.outputs[0].text.strip().endswith(f"#### {result}")
        assert output.outputs[0].finish_reason == "stop"
        assert (output.metrics.tokens_per_forward > 3) == (decoding.algorithm != "LowConfidence")


def test_the_kinds_of_prompt_mean_the_same(llm: LLM) -> None:
    assert llm.tokenizer is not None
    ids = llm.tokenizer.chat_ids(CHATS[0])
    text = "plain text"
    kinds: list[Any] = [CHATS[0], {"prompt_token_ids": ids}, text, {"prompt": text}]
    outputs = llm.generate(kinds, params())
    assert outputs[0].outputs == outputs[1].outputs and outputs[2].outputs == outputs[3].outputs
    assert outputs[2].prompt == text and outputs[2].prompt_token_ids == llm.tokenizer.encode(text)
    assert llm.generate(text, params())[0].outputs == outputs[2].outputs


def test_more_requests_than_slots_keep_their_order(llm: LLM) -> None:
    prompts = CHATS * 5
    settings = [params(40 + number, decoding=ONE_BY_ONE if number % 2 else DecodingConfig()) for number in range(15)]
    together = llm.generate(prompts, settings)
    assert [output.prompt_token_ids for output in together[:3]] == [
        output.prompt_token_ids for output in llm.generate(CHATS, params(1))
    ]
    for number in (0, 7, 14):
        (alone,) = llm.generate([prompts[number]], settings[number])
        assert alone.outputs == together[number].outputs


def test_metrics_and_commit_steps(llm: LLM) -> None:
    (output,) = llm.generate([CHATS[0]], params(decoding=ONE_BY_ONE))
    answer, metrics = output.outputs[0], output.metrics
    assert answer.token_ids[-1] == LLADA_END and answer.finish_reason == "stop"
    assert len(answer.commit_steps) == len(answer.token_ids)
    assert metrics.num_forward_passes >= max(answer.commit_steps)
    assert metrics.tokens_per_forward == (len(answer.token_ids) - 1) / metrics.num_forward_passes
    assert metrics.time_to_first_token is not None
    assert 0 < metrics.time_to_first_token <= metrics.latency


def test_ignore_eos_and_length(llm: LLM) -> None:
    (whole, cut) = llm.generate([CHATS[0]] * 2, [params(72, ignore_eos=True), params(9)])
    assert len(whole.outputs[0].token_ids) == 72 and whole.outputs[0].finish_reason == "length"
    assert len(cut.outputs[0].token_ids) == 9 and cut.outputs[0].finish_reason == "length"


def test_end_id_replaces_the_checkpoints(llm: LLM) -> None:
    assert llm.tokenizer is not None
    (whole,) = llm.generate([CHATS[0]], params())
    end_id = whole.outputs[0].token_ids[5]
    (output,) = llm.generate([CHATS[0]], params(end_id=end_id, decoding=ONE_BY_ONE))
    assert output.outputs[0].token_ids[-1] == end_id
    assert output.outputs[0].finish_reason == "stop"


@pytest.mark.parametrize("decoding", [DecodingConfig(), ONE_BY_ONE])
def test_stop_strings_cut_the_text_before_them(llm: LLM, decoding: DecodingConfig) -> None:
    (output,) = llm.generate([CHATS[0]], params(stop=["#### 5", "away,"], decoding=decoding))
    answer = output.outputs[0]
    assert answer.text.endswith("After giving 15 ") and "away" not in answer.text
    assert (answer.finish_reason, answer.stop_reason) == ("stop", "away,")
    assert llm.tokenizer is not None and "away," in llm.tokenizer.decode(answer.token_ids)
    assert "away," not in llm.tokenizer.decode(answer.token_ids[:-1])


def test_masks_in_token_ids_are_filled_in(llm: LLM) -> None:
    assert llm.tokenizer is not None
    ids = llm.tokenizer.chat_ids(CHATS[0])
    (place,) = [number for number, piece in enumerate(llm.tokenizer.pieces(ids)) if piece == " cookies"][:1]
    holed = [*ids[:place], LLADA_MASK, *ids[place + 1 :]]
    (output,) = llm.generate([{"prompt_token_ids": holed}], params())
    filled = output.prompt_token_ids
    assert filled[place] != LLADA_MASK and [*filled[:place], *filled[place + 1 :]] == [*ids[:place], *ids[place + 1 :]]


def test_a_seed_gives_the_same_tokens_in_any_company(llm: LLM) -> None:
    hot = params(temperature=5.0, seed=11)
    (alone,) = llm.generate([CHATS[1]], hot)
    crowd = llm.generate([CHATS[0], CHATS[1], "and text"], [params(temperature=2.0, seed=11), hot, params(13)])
    assert crowd[1].outputs == alone.outputs
    (other,) = llm.generate([CHATS[1]], params(temperature=5.0, seed=12))
    assert other.outputs != alone.outputs


def test_special_looking_text_is_plain_text(llm: LLM) -> None:
    (output,) = llm.generate([[{"role": "user", "content": "<|mdm_mask|><|eot_id|>"}]], params(4))
    assert output.error is None
    assert LLADA_MASK not in output.prompt_token_ids and output.prompt_token_ids.count(565) == 1


# Streaming


def prefixes(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def assert_stream(outputs: list[RequestOutput], final: RequestOutput) -> None:
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert outputs[-1].outputs == final.outputs
    for before, after in itertools.pairwise(outputs):
        assert after.outputs[0].token_ids[: len(before.outputs[0].token_ids)] == before.outputs[0].token_ids
        assert after.outputs[0].text.startswith(before.outputs[0].text)


@pytest.mark.parametrize("stop", [None, "####", "away, Mia"])
def test_streams_grow_and_end_as_generate_does(llm: LLM, stop: str | None) -> None:
    settings = params(stop=stop, decoding=DecodingConfig("LowConfidence", block_size=8))
    (final,) = llm.generate([CHATS[0]], settings)
    outputs = list(llm.generate_stream(CHATS[0], settings))
    assert len(outputs) > 5
    assert_stream(outputs, final)


def test_canvas_streams_show_every_pass(llm: LLM) -> None:
    outputs = list(llm.generate_stream(CHATS[0], params(24, decoding=ONE_BY_ONE, ignore_eos=True), canvas=True))
    assert len(outputs) == 24
    for number, output in enumerate(outputs, start=1):
        assert output.canvas is not None
        assert output.canvas.token_ids.count(LLADA_MASK) == 24 - number
        assert max(output.canvas.commit_steps) == number


def test_leaving_a_stream_frees_its_slot(llm: LLM) -> None:
    for _ in range(5):
        for _ in llm.generate_stream(CHATS[0], params(100, decoding=ONE_BY_ONE, ignore_eos=True), canvas=True):
            break
    begin = time.perf_counter()
    (output,) = llm.generate([CHATS[1]], params())
    assert output.metrics.num_forward_passes < 10 and time.perf_counter() - begin < 5


def test_a_stream_that_nobody_reads_frees_its_slot(llm: LLM) -> None:
    stream = llm.generate_stream(CHATS[0], params(200, decoding=ONE_BY_ONE, ignore_eos=True))
    del stream
    llm.generate([CHATS[1]], params())
    assert llm.load == (0, 0)


def test_async_requests_run_together(llm: LLM) -> None:
    async def last(chat: Any) -> RequestOutput:
        outputs = [output async for output in llm.generate_async(chat, params())]
        return outputs[-1]

    async def main() -> list[RequestOutput]:
        return await asyncio.gather(*map(last, CHATS))

    wanted = llm.generate(CHATS, params())
    assert [output.outputs for output in asyncio.run(main())] == [output.outputs for output in wanted]


def test_cancelling_an_async_task_cancels_its_request(llm: LLM) -> None:
    async def main() -> None:
        async def endless() -> None:
            async for _ in llm.generate_async(CHATS[0], params(100, decoding=ONE_BY_ONE, ignore_eos=True)):
                pass

        task = asyncio.create_task(endless())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RequestError, match="prompt is 3"):
            async for _ in llm.generate_async(3):
                pass

    asyncio.run(main())


def test_threads_share_the_engine(llm: LLM) -> None:
    wanted = llm.generate(CHATS, params())
    results: dict[int, RequestOutput] = {}

    def ask(number: int) -> None:
        (results[number],) = llm.generate([CHATS[number % 3]], params())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[number].outputs == wanted[number % 3].outputs for number in range(9))


# Bad input


BAD_PROMPTS: list[tuple[Any, dict[str, Any], str]] = [
    ("x" * 1000, {}, "max_tokens is 72; allowed: at most max_seq_len, 256, together"),
    ("", {}, "prompt is empty"),
    ("\ud800", {}, "valid Unicode"),
    ({"prompt_token_ids": []}, {}, "prompt is empty"),
    ({"prompt_token_ids": [1, 576]}, {}, r"prompt_token_ids\[1\] is 576; allowed: integers in 0..575"),
    ({"prompt_token_ids": [-1]}, {}, r"prompt_token_ids\[0\] is -1"),
    ({"prompt_token_ids": [True]}, {}, r"prompt_token_ids\[0\] is True"),
    ({"prompt_token_ids": "12"}, {}, "prompt_token_ids is '12'"),
    ({"prompts": "hi"}, {}, r"keys \['prompts'\]"),
    ({"role": "user", "content": "hi"}, {}, "one chat message"),
    ([{"role": "robot", "content": "hi"}], {}, "role 'robot'"),
    ([], {}, r"messages is \[\]"),
    (None, {}, "prompt is None"),
    (b"bytes", {}, "prompt is b'bytes'"),
    ("hi", {"end_id": 576}, "end_id is 576; allowed: 0..575"),
    ("hi", {"end_id": LLADA_MASK}, "the mask id"),
    ("hi", {"decoding": DecodingConfig("LowConfidence", steps=7)}, "steps is 7; allowed: multiples of 3"),
]


def test_one_bad_request_fails_alone(llm: LLM) -> None:
    prompts: list[Any] = []
    settings = []
    for prompt, changes, _ in BAD_PROMPTS:
        prompts += [prompt, CHATS[0]]
        settings += [params(**changes), params()]
    outputs = llm.generate(prompts, settings)
    (good,) = llm.generate([CHATS[0]], params())
    for number, (_, _, complaint) in enumerate(BAD_PROMPTS):
        bad, neighbour = outputs[2 * number], outputs[2 * number + 1]
        assert isinstance(bad.error, RequestError)
        with pytest.raises(RequestError, match=complaint):
            raise bad.error
        assert bad.finished and bad.outputs[0].finish_reason == "error" and not bad.outputs[0].token_ids
        assert neighbour.outputs == good.outputs


def test_numbers_of_other_libraries_are_token_ids(llm: LLM) -> None:
    for ids in (np.array([1, 2, 3]), torch.tensor([1, 2, 3]), (1, 2, 3)):
        (output,) = llm.generate([{"prompt_token_ids": ids}], params(4))
        assert output.prompt_token_ids == [1, 2, 3] and output.error is None


def test_a_prompt_that_holds_itself_fails_alone(llm: LLM) -> None:
    loop: dict[str, Any] = {}
    loop["prompt"] = loop
    bad, good = llm.generate([loop, CHATS[0]], params())
    assert isinstance(bad.error, RequestError) and good.error is None


def test_a_forked_child_is_told_to_open_its_own(llm: LLM) -> None:
    child = os.fork()
    if child == 0:
        try:
            llm.generate([CHATS[0]], params())
        except EngineError as error:
            os._exit(42 if "opened in another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42


def test_a_panic_in_the_thread_ends_requests_instead_of_hanging(engine_dir: Path) -> None:
    class Panic(BaseException):
        pass

    def panic() -> None:
        raise Panic("rust")

    model = LLM(engine_dir, device="cpu")
    model._worker._scheduler.step = panic  # type: ignore[method-assign]
    (output,) = model.generate([CHATS[0]], params())
    assert "Panic: rust" in str(output.error)


class Panic(BaseException):
    """What the panic of a native library derives from."""


class Fragile(Tokenizer):
    """Raises on every text and on every answer that holds ``bad``."""

    error: BaseException
    bad: int

    def encode(self, text: str) -> list[int]:
        if "bad" in text:
            raise self.error
        return super().encode(text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        if self.bad in ids:
            raise self.error
        return super().decode(ids, skip_special_tokens)


def open_fragile(engine_dir: Path, error: BaseException, bad: int = -1) -> LLM:
    whole = Tokenizer.load(engine_dir)
    assert whole is not None
    fragile = Fragile.load(engine_dir)
    assert isinstance(fragile, Fragile)
    fragile.error, fragile.bad = error, bad
    engine = load_engine(engine_dir, load_manifest(engine_dir), device=torch.device("cpu"))
    return LLM.over(engine, fragile)


@pytest.mark.parametrize("error", [ValueError("odd"), Panic("odd")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_text_cannot_be_made_fails_alone(
    engine_dir: Path, llm: LLM, error: BaseException, stream: bool
) -> None:
    wanted = llm.generate(CHATS, params())
    (rare, *_) = {*wanted[0].outputs[0].token_ids} - {*wanted[1].outputs[0].token_ids, *wanted[2].outputs[0].token_ids}
    with open_fragile(engine_dir, error, rare) as model:
        if stream:
            with pytest.raises(RequestError, match=f"text could not be made: {type(error).__name__}: odd"):
                list(model.generate_stream(CHATS[0], params()))
        bad, *good = model.generate(CHATS, params())
        assert isinstance(bad.error, RequestError) and "text could not be made" in str(bad.error)
        assert bad.outputs[0].finish_reason == "error" and bad.metrics.num_forward_passes > 0
        assert [output.outputs for output in good] == [output.outputs for output in wanted[1:]]
        assert model.healthy and model.load == (0, 0)
        assert [output.outputs for output in model.generate(CHATS[1:], params())] == [o.outputs for o in wanted[1:]]


class Slow(Tokenizer):
    """Encodes nothing before it may, and remembers on which threads it was asked to."""

    def encode(self, text: str) -> list[int]:
        self.threads.append(threading.current_thread())
        assert self.may.wait(20)
        return super().encode(text)

    threads: list[threading.Thread]
    may: threading.Event


def test_the_event_loop_goes_on_while_a_prompt_is_encoded(engine_dir: Path) -> None:
    slow = Slow.load(engine_dir)
    assert isinstance(slow, Slow)
    slow.threads, slow.may = [], threading.Event()
    engine = load_engine(engine_dir, load_manifest(engine_dir), device=torch.device("cpu"))

    async def main(model: LLM) -> list[RequestOutput]:
        async def ask(chat: list[dict[str, str]]) -> RequestOutput:
            async for output in model.generate_async(chat, params()):
                last = output
            return last

        kept, left = asyncio.create_task(ask(CHATS[0])), asyncio.create_task(ask(CHATS[1]))
        while len(slow.threads) < 2:  # the loop runs, or this would never end
            await asyncio.sleep(0.001)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        slow.may.set()
        return [await kept]

    with LLM.over(engine, slow) as model:
        (output,) = asyncio.run(main(model))
        assert output.finished and threading.main_thread() not in slow.threads
        model.generate([CHATS[2]], params())
        assert model.load == (0, 0)


@pytest.mark.parametrize("error", [ValueError("odd"), Panic("odd")])
def test_a_request_whose_prompt_cannot_be_read_fails_alone(engine_dir: Path, llm: LLM, error: BaseException) -> None:
    with open_fragile(engine_dir, error) as model:
        bad, good = model.generate(["a bad text", CHATS[0]], params())
        assert isinstance(bad.error, RequestError) and "the prompt could not be read" in str(bad.error)
        assert good.outputs == llm.generate(CHATS[0:1], params())[0].outputs
        with pytest.raises(RequestError, match="the prompt could not be read"):
            model.generate_stream("a bad text")


def test_settings_of_a_request_are_made_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(config: ModelConfig, ids: list[int], asked: SamplingParams) -> Any:
        made.append(len(ids))
        return new_request(config, ids, asked)

    monkeypatch.setattr(step, "new_request", counted)
    llm.generate(CHATS, params())
    assert len(made) == len(CHATS)


def test_unknown_graphs_are_refused_on_every_road(engine_dir: Path) -> None:
    engine = load_engine(engine_dir, load_manifest(engine_dir), device=torch.device("cpu"))
    for asked, complaint in (("bogus", "cuda_graphs is 'bogus'; allowed: all"), ("all", "cannot run inside a CUDA")):
        with pytest.raises(ConfigError, match=complaint):
            LLM.over(engine, cuda_graphs=asked)
    with pytest.raises(ConfigError, match="cuda_graphs is 'bogus'"):
        LLM("nowhere", cuda_graphs="bogus")


def test_many_messages_and_long_ones_are_refused_at_once(llm: LLM) -> None:
    long = [{"role": "user", "content": "x" * (8 << 20)}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "x" * (8 << 20)}]}]
    short = [{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}]
    many = [{"role": "user", "content": "x"}] * 100_000
    for chat, complaint in (
        (long, "8388608 characters; allowed: at most 32768"),
        (parts, "8388609 characters; allowed: at most 32768"),
        (short, "100000 characters; allowed: at most 32768"),
        (many, "100000 messages; allowed"),
    ):
        start = time.perf_counter()
        (output,) = llm.generate([chat], params())
        assert time.perf_counter() - start < 0.2
        assert complaint in str(output.error)


def test_a_bad_stream_raises_at_once(llm: LLM) -> None:
    with pytest.raises(RequestError, match="prompt is None"):
        llm.generate_stream(None)
    with pytest.raises(RequestError, match="sampling_params is 5"):
        llm.generate_stream("hi", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"max_tokens": True}, "max_tokens is True; allowed: an integer of 0 or more"),
        ({"max_tokens": -5}, "max_tokens is -5"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"seed": 1 << 63}, "seed is"),
        ({"stop": [""]}, "stop is"),
        ({"stop": 5}, "stop is 5; allowed: None, a string, or a list of them"),
        ({"stop": (text for text in ["a"])}, "stop is <generator"),
        ({"decoding": 1}, "decoding is"),
    ],
)
def test_bad_sampling_params(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        SamplingParams(**changes)


def test_prompts_and_settings_must_match(llm: LLM) -> None:
    with pytest.raises(RequestError, match="2 entries for 3 prompts"):
        llm.generate(CHATS, [params()] * 2)
    with pytest.raises(RequestError, match="sampling_params is 5"):
        llm.generate(CHATS, 5)  # type: ignore[arg-type]
    assert llm.generate([], params()) == []


# Opening


def test_opening_with_settings_of_another_engine(engine_dir: Path) -> None:
    for changes, complaint in (
        ({"dtype": "float32"}, "dtype is 'float32', but the engine was built with 'bfloat16'"),
        ({"max_batch_size": 4}, "max_batch_size is 4; allowed: integers in 1..3"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cpu:7"}, "device is 'cpu:7'"),
        ({"cuda_graphs": "some"}, "cuda_graphs is 'some'"),
        ({"device": "cpu", "cuda_graphs": "all"}, "cannot run inside a CUDA graph"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            LLM(engine_dir, **changes)


def test_opening_things_that_are_no_model(tmp_path: Path, engine_dir: Path) -> None:
    with pytest.raises(EngineError, match="no such directory"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(EngineError, match="has no config"):
        LLM(tmp_path)
    for file in engine_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "rank0.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(EngineError, match=r"rank0.safetensors has SHA-256"):
        LLM(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="config"):
        LLM(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="architectures"):
        LLM(tmp_path)


def test_a_plan_for_the_cpu_is_refused_before_it_is_built() -> None:
    with pytest.raises(EngineError, match="a tensorrt-rtx plan needs an NVIDIA GPU"):
        LLM(CHECKPOINTS["llada"], backend="tensorrt-rtx", device="cpu")


def test_a_closed_llm_says_so(engine_dir: Path) -> None:
    model = LLM(engine_dir, device="cpu")
    stream = model.generate_stream(CHATS[0], params(100, decoding=ONE_BY_ONE, ignore_eos=True), canvas=True)
    next(stream)
    model.close()
    with pytest.raises(EngineError, match="closed"):
        list(stream)
    with pytest.raises(EngineError, match="closed"):
        model.generate([CHATS[0]], params())
    model.close()


def test_leaving_the_interpreter_with_an_open_llm_is_quiet(engine_dir: Path) -> None:
    code = "from d3llm_trt import LLM, SamplingParams\n"
    code += f"llm = LLM({str(engine_dir)!r}); next(llm.generate_stream('hi', SamplingParams(max_tokens=200)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, b"")


def test_float32_and_bfloat16_agree_on_the_answers() -> None:
    with LLM(CHECKPOINTS["dream"], device="cpu", dtype="float32") as model:
        outputs = model.generate(CHATS, params())
    results = [output.outputs[0].text.split()[-1] for output in outputs]
    assert results == [str(result) for result in QUESTIONS.values()]


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, time; t = time.perf_counter(); import d3llm_trt; dt = time.perf_counter() - t\n"
    code += "assert dt < 1, dt; assert 'torch' not in sys.modules; assert 'LLM' in dir(d3llm_trt)"
    subprocess.run([sys.executable, "-c", code], check=True)
