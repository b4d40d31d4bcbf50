"""What ends an answer and what its text shows, by engines that answer with ids from a script."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d3llm_trt import LLM, CompletionOutput, DecodingConfig, SamplingParams, build_engine
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.errors import EngineError, RequestError
from d3llm_trt.runtime.engines.base import EngineSpec, ForwardBatch
from d3llm_trt.tokenizer import Tokenizer
from tests.support.tiny_models import CHATS, CHECKPOINTS

PROMPT = {"prompt_token_ids": [5, 6, 7]}
Ids = Callable[[Tokenizer], list[int]]


class Scripted:
    """Answers every prompt of three tokens with the same ids, then EOS."""

    def __init__(self, family: str, answer: list[int]) -> None:
        config = open_checkpoint(CHECKPOINTS[family]).config
        self.spec = EngineSpec(config, "torch", torch.float32, torch.device("cpu"), 2, 256, 512)
        self.answer = answer

    def forward(self, batch: ForwardBatch) -> Tensor:
        config = self.spec.model_config
        places = (batch.positions[batch.logit_rows] + config.shifted_logits - 3).tolist()
        logits = torch.zeros(len(places), config.vocab_size)
        for row, place in enumerate(places):
            logits[row, self.answer[place] if 0 <= place < len(self.answer) else config.eos_token_id] = 30.0
        return logits

    def close(self) -> None:
        """Nothing is kept."""


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    @cache
    def load(family: str) -> Tokenizer:
        folder: Path = tmp_path_factory.mktemp(family) / "e"
        tokenizer = Tokenizer.load(build_engine(CHECKPOINTS[family], folder))
        assert tokenizer is not None
        return tokenizer

    return load


@pytest.fixture
def ask(tokenizers: Callable[[str], Tokenizer]) -> Callable[..., CompletionOutput]:
    """The answer of a scripted engine; a stream of single tokens must end with the same, and never take back."""

    def answer(family: str, ids: Ids, **settings: Any) -> CompletionOutput:
        tokenizer = tokenizers(family)
        params = SamplingParams(**{"max_tokens": 64, **settings})
        slow = SamplingParams(
            **{"max_tokens": 64, "decoding": DecodingConfig("LowConfidence", block_size=4), **settings}
        )
        with LLM.over(Scripted(family, ids(tokenizer)), tokenizer) as llm:
            (output,) = llm.generate(PROMPT, params)
            texts = [step.outputs[0] for step in llm.generate_stream(PROMPT, slow)]
        assert all(after.text.startswith(before.text) for before, after in itertools.pairwise(texts))
        whole = output.outputs[0]
        assert (texts[-1].text, texts[-1].token_ids) == (whole.text, whole.token_ids)
        assert (texts[-1].finish_reason, texts[-1].stop_reason) == (whole.finish_reason, whole.stop_reason)
        return whole

    return answer


def dream_turns(t: Tokenizer) -> list[int]:
    return [*t.encode("It is 7."), 562, *t.encode("\n"), 561, *t.encode("user\nAnd 8?"), 562]


def llada_turns(t: Tokenizer) -> list[int]:
    return [*t.encode("It is 7."), 565, 563, *t.encode("user"), 564, *t.encode("\n\nAnd 8?"), 565]


TURNS: list[tuple[str, Ids, str]] = [("dream", dream_turns, "<|im_end|>"), ("llada", llada_turns, "<|eot_id|>")]


@pytest.mark.parametrize(("family", "ids", "end"), TURNS)
def test_a_special_token_stops_an_answer(ask: Callable[..., CompletionOutput], family: str, ids: Ids, end: str) -> None:
    answer = ask(family, ids, stop=["Q:", "</s>", end])
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("It is 7.", "stop", end)
    assert answer.token_ids[-1] == (562 if family == "dream" else 565)
    shown = ask(family, ids, stop=end, skip_special_tokens=False)
    assert (shown.text, shown.stop_reason) == ("It is 7.", end)
    kept = ask(family, ids, stop=end, skip_special_tokens=False, include_stop_str_in_output=True)
    assert kept.text == f"It is 7.{end}"


@pytest.mark.parametrize(("family", "ids", "end"), TURNS)
def test_no_text_is_shown_behind_a_turn(ask: Callable[..., CompletionOutput], family: str, ids: Ids, end: str) -> None:
    answer = ask(family, ids)
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("It is 7.", "stop", None)
    assert "And 8?" in ask(family, ids, ignore_eos=True).text


def test_special_tokens_inside_a_stop_string(ask: Callable[..., CompletionOutput]) -> None:
    for stop, text in (("<|im_end|>\n<|im_start|>user", "It is 7."), ("7.<|im_end|>", "It is ")):
        answer = ask("dream", dream_turns, stop=stop)
        assert (answer.text, answer.finish_reason, answer.stop_reason) == (text, "stop", stop)
    assert ask("dream", dream_turns, stop="8.<|im_end|>").stop_reason is None


def test_stop_ids_and_end_ids_are_cut_like_strings(ask: Callable[..., CompletionOutput]) -> None:
    newline = 198

    def ids(t: Tokenizer) -> list[int]:
        return t.encode("one\ntwo")

    for settings, reason in (
        ({"stop": "\n"}, "\n"),
        ({"stop_token_ids": [newline]}, newline),
        ({"end_id": newline}, None),
    ):
        answer = ask("llada", ids, **settings)
        assert (answer.text, answer.finish_reason, answer.stop_reason) == ("one", "stop", reason)
        assert answer.token_ids[-1] == newline
        assert ask("llada", ids, include_stop_str_in_output=True, **settings).text == "one\n"


def test_a_stop_string_does_not_cut_a_character(ask: Callable[..., CompletionOutput], tokenizers: Any) -> None:
    halves = tokenizers("llada").encode("é!")
    assert len(halves) == 3
    assert ask("llada", lambda t: t.encode("aé!b"), stop="\ufffd").text == "aé!b"
    broken = ask("llada", lambda t: [*t.encode("a"), halves[0], *t.encode("b")], stop="\ufffd")
    assert (broken.text, broken.stop_reason) == ("a", "\ufffd")
    whole = ask("llada", lambda t: t.encode("aé!b"), stop="é")
    assert (whole.text, whole.token_ids) == ("a", [*tokenizers("llada").encode("a"), *halves[:2]])


def test_stops_that_no_text_can_hold_are_refused() -> None:
    for stop in ("\ud800", ["fine", "a\udfffb"]):
        with pytest.raises(RequestError, match=r"stop is .*; allowed: valid Unicode"):
            SamplingParams(stop=stop)
    for ids in ("12", [-1], [True], 5):
        with pytest.raises(RequestError, match="stop_token_ids is"):
            SamplingParams(stop_token_ids=ids)  # type: ignore[arg-type]


# Several answers, chats, and what comes back


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(CHECKPOINTS["llada"], device="cpu", max_batch_size=3) as opened:
        yield opened


def test_several_answers_are_those_of_their_seeds(llm: LLM) -> None:
    hot = SamplingParams(max_tokens=32, temperature=5.0, seed=7, n=3)
    (output,) = llm.generate([CHATS[0]], hot)
    alone = [llm.generate([CHATS[0]], hot.sample(index))[0] for index in range(3)]
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert [answer.token_ids for answer in output.outputs] == [one.outputs[0].token_ids for one in alone]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3
    assert output.metrics.num_forward_passes == sum(one.metrics.num_forward_passes for one in alone)
    steps = list(llm.generate_stream(CHATS[0], hot))
    assert [len(step.outputs) for step in steps] == [3] * len(steps) and len(steps) > 1
    assert [step.finished for step in steps] == [False] * (len(steps) - 1) + [True]
    assert steps[-1].outputs == output.outputs


def test_leaving_a_stream_of_several_answers_frees_all_slots(llm: LLM) -> None:
    params = SamplingParams(max_tokens=200, n=3, ignore_eos=True, decoding=DecodingConfig("LowConfidence"))
    for _ in llm.generate_stream(CHATS[0], params, canvas=True):
        break
    llm.generate([CHATS[1]])
    assert llm.load == (0, 0)


def test_none_takes_all_the_room(llm: LLM) -> None:
    ids = [5] * (llm.spec.max_seq_len - 9)
    (output,) = llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=None, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 9
    (full,) = llm.generate({"prompt_token_ids": [*ids, *[5] * 9]}, SamplingParams(max_tokens=None))
    assert isinstance(full.error, RequestError) and "together" in str(full.error)


def test_forms_of_prompts_that_are_clear_are_taken(llm: LLM) -> None:
    wanted = llm.generate(CHATS)
    assert llm.get_tokenizer() is llm.tokenizer
    assert [one.outputs for one in llm.generate(chat for chat in CHATS)] == [one.outputs for one in wanted]
    assert llm.chat(CHATS[0])[0].outputs == llm.generate(CHATS[0])[0].outputs == wanted[0].outputs
    parts = [
        {**CHATS[0][0], "content": [{"type": "text", "text": CHATS[0][0]["content"]}], "name": "a", "refusal": None}
    ]
    assert llm.chat(parts)[0].outputs == wanted[0].outputs
    split = [{"role": "user", "content": [{"type": "text", "text": text} for text in ("a", "b")]}]
    assert llm.chat(split)[0].prompt_token_ids == llm.chat([{"role": "user", "content": "a\nb"}])[0].prompt_token_ids
    roles = [[{"role": role, "content": "Be brief."}, *CHATS[0]] for role in ("developer", "system")]
    developer, system = llm.generate(roles)
    assert developer.prompt_token_ids == system.prompt_token_ids
    for prompts in (None, 3, b"hi"):
        with pytest.raises(RequestError, match="prompts is"):
            llm.generate(prompts)


def test_errors_are_logged_and_raised_where_asked(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "d3llm_trt"):
        bad, good = llm.generate(["", CHATS[0]])
    assert "prompt is empty" in caplog.text and good.error is None
    with pytest.raises(RequestError, match="prompt is empty"):
        llm.generate([CHATS[0], "", CHATS[1]], raise_on_error=True)
    assert json.loads(json.dumps(bad.to_dict()))["error"] == str(bad.error)
    shown = json.loads(json.dumps(good.to_dict()))
    assert shown["outputs"][0]["text"] == good.outputs[0].text and shown["error"] is None


def test_a_model_says_what_it_is(llm: LLM) -> None:
    assert repr(llm) == "LLM(llada, torch engine in bfloat16 on cpu, 3 slots)"
    with LLM.over(Scripted("dream", [1])) as mute, pytest.raises(EngineError, match="has no tokenizer"):
        mute.get_tokenizer()
