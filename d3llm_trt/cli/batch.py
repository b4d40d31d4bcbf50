"""Any number of prompts through one LLM: answers in the order of the prompts, few of them in memory at a time."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from d3llm_trt.cli.answers import refused
from d3llm_trt.errors import ConfigError, D3llmError, EngineError, RequestError
from d3llm_trt.prompt_files import Entry
from d3llm_trt.prompts import Prompt, as_chat
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams, as_sampling_params
from d3llm_trt.runtime.outputs import RequestOutput

if TYPE_CHECKING:
    from d3llm_trt.runtime.llm import LLM

LEAST_AHEAD, AHEAD_PER_SLOT = 64, 8
SETTINGS = tuple(item.name for item in fields(SamplingParams))
OBJECTS_OF_SETTINGS = ("params", "sampling_params")


@dataclass(frozen=True)
class Question:
    """An entry with its number and its settings.

    Args:
        index: from 0, over all prompts.
        entry: as it was given; its error may be one of its settings.
        params: the command line's settings with the entry's own on top.
        others: keys of the entry that are no settings.
    """

    index: int
    entry: Entry
    params: SamplingParams
    others: Mapping[str, Any]


Reply = tuple[Question, RequestOutput]


def questions(entries: Iterable[Entry], params: SamplingParams) -> Iterator[Question]:
    """The entries, numbered, each with its settings."""
    for index, entry in enumerate(entries):
        others = {k: v for k, v in entry.others.items() if k not in SETTINGS and k not in OBJECTS_OF_SETTINGS}
        own = params
        try:
            own = _with_own(params, entry.others)
        except (ConfigError, RequestError) as error:
            entry = replace(entry, error=entry.error or error)
        yield Question(index, entry, own, others)


def _with_own(params: SamplingParams, others: Mapping[str, Any]) -> SamplingParams:
    """The settings with those that stand in an entry. Raises RequestError or ConfigError."""
    own: dict[str, Any] = {}
    for name in OBJECTS_OF_SETTINGS:
        values = others.get(name, {})
        if not isinstance(values, Mapping):
            raise RequestError(f"{name} is {values!r}; allowed: an object of sampling settings")
        own |= values
    own |= {name: others[name] for name in SETTINGS if name in others}
    if not own:
        return params
    if isinstance(own.get("decoding"), Mapping):
        own["decoding"] = DecodingConfig.from_dict({**vars(params.decoding), **own["decoding"]})
    return as_sampling_params({**vars(params), **own})


def up_to_first_good(asked: Iterator[Question]) -> tuple[list[Question], bool]:
    """The questions up to the first one that can be asked, and whether there is one."""
    head: list[Question] = []
    for question in asked:
        head.append(question)
        if question.entry.error is None:
            return head, True
    return head, False


def unasked(question: Question, error: D3llmError) -> RequestOutput:
    """The output of a question that was not asked because of ``error``."""
    return refused(f"prompt-{question.index}", error)


class Asker:
    """Asks an LLM questions; texts become chats with ``system`` where ``chat`` says so."""

    def __init__(self, llm: LLM, chat: bool, system: str | None) -> None:
        self._llm, self._chat, self._system = llm, chat, system

    def prompt_of(self, question: Question) -> Prompt:
        """The prompt as the LLM gets it. Raises what is wrong with the question."""
        prompt = question.entry.prompt
        if question.entry.error is not None or prompt is None:
            raise question.entry.error or RequestError("prompt is missing; give one")
        return as_chat(prompt, self._system) if self._chat else prompt

    def answers(self, asked: Iterable[Question]) -> Iterator[Reply]:
        """Each question with its answer, in their order and as soon as those before are there.

        Questions are read and asked only so far ahead that all slots are busy. Raises EngineError if the engine
        is broken; the answers so far were given then, and nothing is said of the questions that it failed.
        """
        held: list[Reply] = []
        for question, output in self._replies(asked):
            # A broken engine fails what it runs for a while before that is known; an answer shows that it works.
            waits = isinstance(output.error, EngineError) or (bool(held) and output.error is not None)
            held.append((question, output))
            if not waits or len(held) > self._ahead:
                yield from held
                held.clear()
        yield from held

    @property
    def _ahead(self) -> int:
        return max(LEAST_AHEAD, AHEAD_PER_SLOT * self._llm.spec.max_batch_size)

    def _replies(self, asked: Iterable[Question]) -> Iterator[Reply]:
        waiting: deque[_Waiting] = deque()
        try:
            for question in asked:
                waiting.append(self._ask(question))
                while len(waiting) >= self._ahead or (waiting and waiting[0].is_done):
                    yield self._first(waiting)
            while waiting:
                yield self._first(waiting)
        finally:
            for other in waiting:
                self._llm.cancel(other.request_id)

    def _ask(self, question: Question) -> _Waiting:
        outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        request_id = ""
        try:
            request_id = self._llm.submit(self.prompt_of(question), question.params, outputs.put)
        except (RequestError, ConfigError) as error:
            outputs.put(unasked(question, error))
        return _Waiting(question, request_id, outputs)

    def _first(self, waiting: deque[_Waiting]) -> Reply:
        output = waiting[0].outputs.get()
        if isinstance(output.error, EngineError) and not self._llm.healthy:
            raise output.error
        return waiting.popleft().question, output


@dataclass(frozen=True)
class _Waiting:
    """A question that was asked, and where its answer will come."""

    question: Question
    request_id: str
    outputs: queue.SimpleQueue[RequestOutput]

    @property
    def is_done(self) -> bool:
        return not self.outputs.empty()
