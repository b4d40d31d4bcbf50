"""Random traffic on one LLM: nothing stuck, lost, leaked, wrongly accepted or refused, and answers as if asked alone.

``python benchmarks/traffic.py --seconds 600 --batch-size 16 --device cuda --dtype bfloat16 --output traffic.json``

Clients of every kind (``submit`` with sinks, ``generate``, ``generate_stream``, ``generate_async``) keep about thirty
requests under way on a tiny trained checkpoint, some of which are left early, and some of which are bad. What they ask
follows from the seed alone. Then a sample of the answers is asked for again, one at a time. In float32 both must be
the same. In a narrower dtype another batch means other matrix products and other last bits: there a difference is
explained where noise of that size on the logits changes the first decision in which the two differ. What memory may
grow by is in the report; on the CPU in a narrower dtype it does not count: oneDNN keeps code for every shape there.
Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import itertools
import json
import logging
import math
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny_models import CHECKPOINTS, chat  # noqa: E402

from d3llm_trt import LLM, BuildConfig, DecodingConfig, RequestOutput, SamplingParams, build_engine  # noqa: E402
from d3llm_trt.errors import ConfigError, D3llmError, RequestError  # noqa: E402
from d3llm_trt.manifest import load_manifest  # noqa: E402
from d3llm_trt.runtime.decoding.config import ALGORITHMS  # noqa: E402
from d3llm_trt.runtime.decoding.decoder import Decoder  # noqa: E402
from d3llm_trt.runtime.decoding.state import MASKED  # noqa: E402
from d3llm_trt.runtime.decoding.step import run_step  # noqa: E402
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch  # noqa: E402
from d3llm_trt.runtime.loading import load_engine  # noqa: E402
from d3llm_trt.tokenizer import Tokenizer  # noqa: E402
from examples.tiny_d3llm.problems import problem_stream  # noqa: E402

BAD_SHARE, LEFT_SHARE = 0.12, 0.15
SUBMITTED, GENERATING, STREAMING, ASYNCHRONOUS = 16, 2, 4, 6  # requests, threads, threads and tasks
SOONEST, LATEST = 0.001, 2.0  # seconds until a request is left
REFUSED_WITHIN = 5.0  # seconds; a bad request never waits for the engine, only for Python
SILENT_WITHIN = 10.0  # seconds after a request is cancelled
SAMPLED_EVERY, PRINTED_EVERY = 2.0, 30.0  # seconds
MIB = 1 << 20
# How much more the last quarter of the run may use than the second one, by medians.
ALLOWED_GROWTH = {"rss": 64 * MIB, "threads": 1, "allocated": 8 * MIB, "reserved": 64 * MIB, "used": 128 * MIB}
NOISES = tuple(2.0**power for power in range(-16, -2))  # standard deviations, as shares of the largest logit
EXPLAINING_NOISE = {"fp8": 2.0**-5, "bfloat16": 2.0**-6, "float16": 2.0**-9, "float32": 0.0}
DTYPES = ("bfloat16", "float16", "float32")
DRAWS = 12
MOST_DETAILS = 50


# What is asked


@dataclass(frozen=True)
class Ask:
    """One request in plain values; ``error`` is what a bad one must raise, ``leave_after`` counts seconds."""

    name: str
    kind: str
    prompt: Any
    settings: Any
    stream: bool = False
    canvas: bool = False
    leave_after: float | None = None
    error: type[D3llmError] | None = None

    @property
    def params(self) -> Any:
        """The settings as SamplingParams. Raises what is wrong with them."""
        if not isinstance(self.settings, dict):
            return self.settings
        decoding = self.settings["decoding"]
        made = DecodingConfig.from_dict(decoding) if isinstance(decoding, dict) else decoding
        return SamplingParams(**{**self.settings, "decoding": made})

    def described(self) -> dict[str, str]:
        """For a report."""
        return {"name": self.name, "kind": self.kind, "prompt": _short(self.prompt), "settings": _short(self.settings)}


@dataclass(frozen=True)
class Asker:
    """Makes requests from their names: the same ones for the same seed, whenever they are asked."""

    seed: int
    limit: int
    vocab: int
    mask_id: int
    tokenizer: Tokenizer

    def ask(self, name: str) -> Ask:
        """A good one or a bad one."""
        rng = random.Random(f"{self.seed}:{name}")
        if rng.random() < BAD_SHARE:
            return replace(rng.choice(self.bad), name=name, stream=rng.random() < 0.5)
        return self._good(name, rng)

    def _good(self, name: str, rng: random.Random) -> Ask:
        kind, prompt, length = self._prompt(rng)
        tokens = _answer_length(rng, self.limit - length)
        left = rng.random() < LEFT_SHARE
        return Ask(
            name,
            kind,
            prompt,
            self._settings(rng, tokens),
            stream=rng.random() < 0.5,
            canvas=rng.random() < 0.1,
            leave_after=math.exp(rng.uniform(math.log(SOONEST), math.log(LATEST))) if left else None,
        )

    def _prompt(self, rng: random.Random) -> tuple[str, Any, int]:
        question = next(problem_stream(rng.getrandbits(32), "heldout")).question
        kind = rng.choice(("chat", "chat", "ids", "ids", "text"))
        if kind == "chat":
            return kind, chat(question), len(self.tokenizer.chat_ids(chat(question)))
        if kind == "text":
            text = rng.choice(("", "naïve 日本語 🎉 ", "\n\n<|mdm_mask|>")) + question[: rng.randint(1, len(question))]
            return kind, rng.choice((text, {"prompt": text})), len(self.tokenizer.encode(text))
        ids = self._ids(rng, rng.randint(1, self.limit - 1 if rng.random() < 0.3 else self.limit // 4))
        return kind, {"prompt_token_ids": ids}, len(ids)

    def _ids(self, rng: random.Random, length: int) -> list[int]:
        """Any ids, sometimes with masks to be filled in."""
        ids = [rng.choice(range(self.mask_id)) for _ in range(length)]
        if rng.random() < 0.2:
            for place in rng.sample(range(length), min(length, rng.randint(1, 5))):
                ids[place] = self.mask_id
        return ids

    def _settings(self, rng: random.Random, tokens: int) -> dict[str, Any]:
        return {
            "max_tokens": tokens,
            "temperature": rng.choice((0.0, 0.0, 0.0, 0.3, 1.0, 5.0)),
            "seed": rng.getrandbits(62),
            "ignore_eos": rng.random() < 0.2,
            "end_id": rng.randrange(self.mask_id) if rng.random() < 0.1 else None,
            "stop": rng.choice((None, None, None, "####", "\n", [" has", "left"], ["dollars", "He", "= "])),
            "decoding": _decoding(rng, tokens),
        }

    @cached_property
    def bad(self) -> tuple[Ask, ...]:
        """Requests that are bad in every way the runtime knows."""
        plain, ids = {"max_tokens": 4, "decoding": {}}, {"prompt_token_ids": [1] * 100}
        prompts = [Ask("", name, prompt, plain, error=RequestError) for name, prompt in self._bad_prompts().items()]
        settings = [
            Ask("", f"bad settings {_short(changes)}", "hi", plain | changes, error=error)
            for error, listed in self._bad_settings().items()
            for changes in listed
        ]
        others = (
            Ask("", "one token too many", ids, plain | {"max_tokens": self.limit - 99}, error=RequestError),
            Ask("", "no SamplingParams", "hi", 5, error=RequestError),
        )
        return (*prompts, *settings, *others)

    def _bad_prompts(self) -> dict[str, Any]:
        return {
            "long text": "x " * self.limit,
            "endless text": "x" * (128 * self.limit + 1),
            "too many ids": {"prompt_token_ids": [1] * self.limit},
            "empty text": "",
            "no ids": {"prompt_token_ids": []},
            "lone surrogate": "\ud800",
            "id behind the vocabulary": {"prompt_token_ids": [1, self.vocab]},
            "negative id": {"prompt_token_ids": [-1]},
            "id True": {"prompt_token_ids": [True]},
            "id 1.0": {"prompt_token_ids": [1.0]},
            "ids as text": {"prompt_token_ids": "12"},
            "ids None": {"prompt_token_ids": None},
            "unknown key": {"prompts": "hi"},
            "one message": {"role": "user", "content": "hi"},
            "unknown role": [{"role": "robot", "content": "hi"}],
            "no content": [{"role": "user"}],
            "content None": [{"role": "user", "content": None}],
            "content as prompt": {"prompt": ["hi"]},
            "no messages": [],
            "message as text": ["hi"],
            "None": None,
            "bytes": b"bytes",
            "number": 3,
        }

    def _bad_settings(self) -> dict[type[D3llmError], list[dict[str, Any]]]:
        plain = (
            ("max_tokens", 0), ("max_tokens", -5), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", 1 << 70),
            ("temperature", -1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
            ("seed", -1), ("seed", 1 << 63), ("ignore_eos", 1), ("end_id", -1), ("end_id", self.vocab),
            ("end_id", self.mask_id), ("stop", ""), ("stop", [""]), ("stop", [3]), ("stop", 5),
            ("decoding", "MultiBlock"), ("decoding", None),
        )  # fmt: skip
        unfit = {"decoding": {"algorithm": "LowConfidence", "steps": 7}, "max_tokens": 72}
        decodings = (
            {"algorithm": "Vanilla"}, {"block_size": 0}, {"block_size": 1.5}, {"threshold": "low"},
            {"threshold": math.nan}, {"block_add_threshold": None}, {"decoded_token_threshold": 1.5},
            {"cache_delay_iter": 1}, {"algorithm": "MultiBlock", "cache_delay_iter": -1},
            {"algorithm": "MultiBlock", "refresh_interval": 2}, {"steps": 4}, {"early_stop": 1},
            {"algorithm": "LowConfidence", "steps": 0}, {"algorithm": "MultiBlock", "cache": True},
        )  # fmt: skip
        return {
            RequestError: [{name: value} for name, value in plain] + [unfit],
            ConfigError: [{"decoding": decoding} for decoding in decodings],
        }


def _answer_length(rng: random.Random, fits: int) -> int:
    """Mostly short, sometimes anything that fits, sometimes all of it."""
    kind = rng.random()
    return fits if kind < 0.05 else rng.randint(1, fits if kind < 0.2 else min(fits, 100))


def _decoding(rng: random.Random, tokens: int) -> dict[str, Any]:
    algorithm, size = rng.choice(ALGORITHMS), rng.choice((1, 4, 7, 16, 32, 32, 32, 64, 500))
    settings = {
        "algorithm": algorithm,
        "block_size": size,
        "threshold": rng.choice(("auto", "auto", "auto", None, 0.05, 0.4, 1.5)),
        "block_add_threshold": rng.choice((0.0, 0.1, 0.1, 0.5, 1.0)),
        "decoded_token_threshold": rng.choice((0.1, 0.95, 0.95, 1.0)),
        "early_stop": rng.random() < 0.8,
    }
    blocks = math.ceil(tokens / size)
    if algorithm == "MultiBlock" and rng.random() < 0.7:
        settings["cache_delay_iter"] = rng.randint(0, 4)
        settings["refresh_interval"] = rng.choice((None, 1, 2, 5))
    if algorithm == "LowConfidence" and rng.random() < 0.6:
        settings["steps"] = blocks * rng.randint(1, tokens // blocks)
    return settings


def _short(value: object, most: int = 400) -> str:
    text = ascii(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


# What became of it


@dataclass(frozen=True)
class Final:
    """All of an answer that must not depend on its company."""

    token_ids: list[int]
    commit_steps: list[int]
    passes: int
    text: str
    finish_reason: str | None
    stop_reason: str | None
    prompt_token_ids: list[int]

    @classmethod
    def of(cls, output: RequestOutput) -> Final:
        """Of a finished request."""
        answer, passes = output.outputs[0], output.metrics.num_forward_passes
        ends = answer.text, answer.finish_reason, answer.stop_reason
        return cls(answer.token_ids, answer.commit_steps, passes, *ends, output.prompt_token_ids)


class Ledger:
    """What became of every request, for any thread. Keeps ``most`` answers, chosen by their names and the seed."""

    def __init__(self, most: int, seed: int) -> None:
        self.lock = threading.RLock()
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.details: list[dict[str, Any]] = []
        self.open: dict[str, Ticket] = {}
        self.slowest = {"answered": 0.0, "refused": 0.0}
        self._most, self._seed = most, seed
        self._kept: list[tuple[float, str, Final]] = []

    @property
    def kept(self) -> dict[str, Final]:
        """Answers to compare, by the names of their requests."""
        return {name: final for _, name, final in sorted(self._kept, key=lambda item: item[1])}

    def problem(self, what: str, ask: Ask | None = None, detail: object = None) -> None:
        """Something that fails the run."""
        with self.lock:
            self.problems[what] += 1
            if self.problems[what] <= MOST_DETAILS:
                described = {} if ask is None else ask.described()
                self.details.append({"problem": what, **described, "detail": _short(detail, 2000)})

    def note(self, outcome: str, ask: Ask, seconds: float) -> None:
        """A request has ended."""
        with self.lock:
            self.counts[outcome] += 1
            name = ask.kind if ask.error else ask.settings["decoding"]["algorithm"]
            self.kinds[f"{outcome}: {name}"] += 1
            if outcome in self.slowest:
                self.slowest[outcome] = max(self.slowest[outcome], seconds)

    def keep(self, ask: Ask, final: Final) -> None:
        """Remember an answer if it is in the sample."""
        with self.lock:
            heapq.heappush(self._kept, (random.Random(f"{self._seed}:keep:{ask.name}").random(), ask.name, final))
            if len(self._kept) > self._most:
                heapq.heappop(self._kept)

    @contextmanager
    def expecting(self, ask: Ask) -> Iterator[None]:
        """Around the asking: errors are noted, and they must be the right ones."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:  # noqa: BLE001 (an error of the wrong type is what this looks for)
            self.failed(ask, error, time.perf_counter() - start)

    def failed(self, ask: Ask, error: Exception, seconds: float) -> None:
        """A request raised an error, or its answer has one."""
        if ask.error is None:
            self.problem("good request failed", ask, error)
        elif not isinstance(error, ask.error):
            self.problem(f"bad request raised {type(error).__name__}, not {ask.error.__name__}", ask, error)
        elif seconds > REFUSED_WITHIN:
            self.problem("bad request refused late", ask, seconds)
        self.note("refused", ask, seconds)
        with self.lock:
            self.open.pop(ask.name, None)

    def declare_stuck(self, seconds: float) -> None:
        """Give up on what is open for longer than this."""
        now = time.perf_counter()
        with self.lock:
            late = [ticket for ticket in self.open.values() if now - ticket.start > seconds]
        for ticket in late:
            self.problem("stuck", ticket.ask, f"{ticket.seen} outputs in {now - ticket.start:.1f} seconds")
            ticket.end("stuck")


@dataclass
class Ticket:
    """A request from its asking to its end: a sink that checks what it is given."""

    ledger: Ledger
    ask: Ask
    start: float = field(default_factory=time.perf_counter)
    outcome: str | None = None
    ended: float = 0.0
    seen: int = 0
    _last: RequestOutput | None = None

    def __post_init__(self) -> None:
        with self.ledger.lock:
            self.ledger.open[self.ask.name] = self

    def see(self, output: RequestOutput) -> None:
        """The next output."""
        with self.ledger.lock:
            if self.outcome is not None:
                self._see_too_late(output)
                return
            self.seen += 1
            if output.error is not None:
                self.outcome, self.ended = "refused", time.perf_counter()
                self.ledger.failed(self.ask, output.error, output.metrics.latency)
                return
            self._compare_with_last(output)
            self._last = output
            if output.finished:
                self._finish(output)

    def end(self, outcome: str) -> None:
        """It is answered, or nobody waits for it any more; nothing happens if it has ended before."""
        with self.ledger.lock:
            if self.outcome is None:
                self.outcome, self.ended = outcome, time.perf_counter()
                self.ledger.open.pop(self.ask.name, None)
                self.ledger.note(outcome, self.ask, self.ended - self.start)
                if outcome == "lost":
                    self.ledger.problem("ended without an answer", self.ask)

    def _see_too_late(self, output: RequestOutput) -> None:
        if self.outcome != "cancelled":
            self.ledger.problem("output after the end", self.ask, output)
        elif time.perf_counter() - self.ended > SILENT_WITHIN:
            self.ledger.problem("output long after cancelling", self.ask, output)

    def _compare_with_last(self, output: RequestOutput) -> None:
        if self._last is None:
            return
        before, after = self._last.outputs[0], output.outputs[0]
        count = len(before.token_ids)
        same = after.token_ids[:count] == before.token_ids and after.commit_steps[:count] == before.commit_steps
        if not (same and after.text.startswith(before.text)):
            self.ledger.problem("retracted", self.ask, (before, after))

    def _finish(self, output: RequestOutput) -> None:
        self.end("answered")
        if self.ask.error is not None:
            self.ledger.problem("bad request answered", self.ask, output)
            return
        for wrong in unsound(self.ask, output, self.seen):
            self.ledger.problem(f"unsound answer: {wrong}", self.ask, output)
        self.ledger.keep(self.ask, Final.of(output))


def unsound(ask: Ask, output: RequestOutput, seen: int) -> list[str]:
    """What no answer to ``ask`` may be."""
    answer, most, passes = output.outputs[0], ask.settings["max_tokens"], output.metrics.num_forward_passes
    stops = ask.params.stop_strings
    whole = answer.finish_reason == "length" or (ask.settings["ignore_eos"] and answer.stop_reason is None)
    checks = {
        "finish_reason": answer.finish_reason in ("stop", "length"),
        "length": len(answer.token_ids) == most if whole else 0 < len(answer.token_ids) <= most,
        "commit_steps": len(answer.commit_steps) == len(answer.token_ids)
        and all(0 < step <= passes for step in answer.commit_steps),
        "passes": 0 < passes <= most + len(output.prompt_token_ids),
        "stop string in the text": not any(stop in answer.text for stop in stops),
        "stop_reason": answer.stop_reason is None or answer.stop_reason in stops,
        "an output for every pass": not ask.canvas or seen == passes,
    }
    return [name for name, sound in checks.items() if not sound]


# Who asks


@dataclass(frozen=True)
class Traffic:
    """Clients of one LLM, until a point in time."""

    llm: LLM
    asker: Asker
    ledger: Ledger
    until: float

    def asks(self, client: str) -> Iterator[Ask]:
        """The requests of one client."""
        for number in itertools.count():
            if time.perf_counter() >= self.until:
                return
            yield self.asker.ask(f"{client}-{number}")

    def start(self) -> list[threading.Thread]:
        """All clients, each in its thread."""
        runs: list[tuple[Callable[[str], None], str]] = [(self._submit_all, "submit"), (self._run_loop, "async")]
        runs += [(self._generate_all, f"generate{number}") for number in range(GENERATING)]
        runs += [(self._stream_all, f"stream{number}") for number in range(STREAMING)]
        threads = [threading.Thread(target=self._guarded, args=run, name=run[1], daemon=True) for run in runs]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, run: Callable[[str], None], name: str) -> None:
        try:
            run(name)
        except BaseException as error:  # noqa: BLE001 (a client that dies must fail the run)
            self.ledger.problem("client died", None, f"{name}: {error!r}")

    def _submit_all(self, client: str) -> None:
        live: list[Ticket] = []
        due: list[tuple[float, str, Ticket]] = []
        asks = self.asks(client)
        asking = True
        while asking or live:
            self._cancel(due)
            live = [ticket for ticket in live if ticket.outcome is None]
            if not asking or len(live) >= SUBMITTED:
                time.sleep(0.001)
            elif (ask := next(asks, None)) is None:
                asking = False
            else:
                self._submit(ask, live, due)

    def _submit(self, ask: Ask, live: list[Ticket], due: list[tuple[float, str, Ticket]]) -> None:
        with self.ledger.expecting(ask):
            ticket = Ticket(self.ledger, ask)
            request_id = self.llm.submit(ask.prompt, ask.params, ticket.see, stream=ask.stream, canvas=ask.canvas)
            live.append(ticket)
            if ask.leave_after is not None:
                heapq.heappush(due, (ticket.start + ask.leave_after, request_id, ticket))

    def _cancel(self, due: list[tuple[float, str, Ticket]]) -> None:
        while due and due[0][0] <= time.perf_counter():
            _, request_id, ticket = heapq.heappop(due)
            self.llm.cancel(request_id)
            ticket.end("cancelled")

    def _generate_all(self, client: str) -> None:
        asks, rng = self.asks(client), random.Random(client)
        while some := list(itertools.islice(asks, rng.randint(1, 3))):
            self._generate([ask for ask in some if self._has_params(ask)])

    def _has_params(self, ask: Ask) -> bool:
        """Whether its settings can be made at all; if not, that is noted."""
        with self.ledger.expecting(ask):
            return ask.params is not None
        return False

    def _generate(self, asks: Sequence[Ask]) -> None:
        tickets = [Ticket(self.ledger, replace(ask, canvas=False)) for ask in asks]
        try:
            outputs = self.llm.generate([ask.prompt for ask in asks], [ask.params for ask in asks])
        except Exception as error:  # noqa: BLE001 (whatever it is, it should have been an output's error)
            self.ledger.problem("generate raised", None, error)
            for ticket in tickets:
                ticket.end("lost")
            return
        for ticket, output in zip(tickets, outputs, strict=True):
            ticket.see(output)

    def _stream_all(self, client: str) -> None:
        for ask in self.asks(client):
            with self.ledger.expecting(ask):
                self._stream(ask)

    def _stream(self, ask: Ask) -> None:
        ticket = Ticket(self.ledger, ask)
        with closing(self.llm.generate_stream(ask.prompt, ask.params, canvas=ask.canvas)) as outputs:
            for output in outputs:
                ticket.see(output)
                if ask.leave_after is not None and time.perf_counter() - ticket.start > ask.leave_after:
                    ticket.end("cancelled")
                    break
        ticket.end("lost")

    def _run_loop(self, client: str) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(self._async_all(f"{client}{number}") for number in range(ASYNCHRONOUS)))

        asyncio.run(all_of_them())

    async def _async_all(self, client: str) -> None:
        for ask in self.asks(client):
            with self.ledger.expecting(ask):
                ticket = Ticket(self.ledger, ask)
                try:
                    await asyncio.wait_for(self._consume(ask, ticket), ask.leave_after)
                except asyncio.TimeoutError:
                    ticket.end("cancelled")
                ticket.end("lost")
            await asyncio.sleep(0)

    async def _consume(self, ask: Ask, ticket: Ticket) -> None:
        async with aclosing(self.llm.generate_async(ask.prompt, ask.params, canvas=ask.canvas)) as outputs:
            async for output in outputs:
                ticket.see(output)


# What it takes


@dataclass(frozen=True)
class Sample:
    """Memory in bytes at one moment: the process's and, on a GPU, torch's, its allocator's, and the whole device's."""

    seconds: float
    answered: int
    rss: int
    threads: int
    allocated: int | None = None
    reserved: int | None = None
    used: int | None = None

    @classmethod
    def take(cls, seconds: float, answered: int, device: torch.device) -> Sample:
        """Now."""
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        status = {words[0]: words[1] for words in lines if len(words) > 1}
        sample = cls(seconds, answered, int(status["VmRSS:"]) * 1024, int(status["Threads:"]))
        if device.type != "cuda":
            return sample
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return replace(sample, allocated=allocated, reserved=reserved, used=_used_by_this_process(device))


def _used_by_this_process(device: torch.device) -> int:
    """Bytes of the GPU's memory; of all processes where the driver does not tell them apart."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, ValueError):
        listed = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
        mine = [line.split(",")[1] for line in listed if line.split(",")[0] == str(os.getpid())]
        if mine:
            return int(mine[0]) << 20
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def growth(samples: Sequence[Sample], seconds: float) -> dict[str, dict[str, Any]]:
    """Medians of the second and the last quarter, and whether their difference is allowed."""
    quarters = [[s for s in samples if lo < s.seconds / seconds <= lo + 0.25] for lo in (0.25, 0.75)]
    found = {}
    for name, allowed in ALLOWED_GROWTH.items():
        if getattr(samples[0], name) is not None:
            second, last = (statistics.median(getattr(s, name) for s in part or samples) for part in quarters)
            grown = last - second
            found[name] = {
                "second_quarter": second, "last_quarter": last, "growth": grown, "allowed": allowed,
                "flat": grown <= allowed,
            }  # fmt: skip
    return found


def drive(traffic: Traffic, seconds: float, stuck_after: float, device: torch.device) -> list[Sample]:
    """Let the clients ask until the time is over and everything is answered or given up."""
    begin, printed, ledger = time.perf_counter(), 0.0, traffic.ledger
    threads, samples = traffic.start(), []
    while any(thread.is_alive() for thread in threads) and (time.perf_counter() < traffic.until or ledger.open):
        time.sleep(min(SAMPLED_EVERY, seconds / 40))
        samples.append(Sample.take(time.perf_counter() - begin, ledger.counts["answered"], device))
        ledger.declare_stuck(stuck_after)
        if samples[-1].seconds - printed >= PRINTED_EVERY:
            printed = samples[-1].seconds
            print(_line(samples[-1], ledger, traffic.llm), flush=True)
    for thread in threads:
        thread.join(5)
    return samples


def _line(sample: Sample, ledger: Ledger, llm: LLM) -> str:
    counts, (waiting, running) = ledger.counts, llm.load
    memory = [f"{name} {value / MIB:.0f}" for name in ("rss", "allocated", "reserved", "used")
              if (value := getattr(sample, name)) is not None]  # fmt: skip
    return (
        f"{sample.seconds:5.0f} s: {counts['answered']} answered, {counts['cancelled']} cancelled, "
        f"{counts['refused']} refused, {len(ledger.open)} in flight ({running} running, {waiting} waiting), "
        f"{sum(ledger.problems.values())} problems, MiB: {', '.join(memory)}"
    )


def check_idle(llm: LLM, ledger: Ledger) -> None:
    """Nothing may be left behind by what was answered or cancelled."""
    deadline = time.perf_counter() + SILENT_WITHIN
    while llm.load != (0, 0) and time.perf_counter() < deadline:
        time.sleep(0.01)
    if llm.load != (0, 0):
        ledger.problem("slots still taken", None, llm.load)
    if not llm.healthy:
        ledger.problem("not healthy")


# The same alone


def compare_alone(llm: LLM, asker: Asker, ledger: Ledger, stuck_after: float) -> list[tuple[Ask, Final, Final]]:
    """Ask for the kept answers again, one by one; those that differ, together and alone."""
    different = []
    for name, together in ledger.kept.items():
        ask, outputs = asker.ask(name), queue.SimpleQueue[RequestOutput]()
        llm.submit(ask.prompt, ask.params, outputs.put)
        try:
            alone = Final.of(outputs.get(timeout=stuck_after))
        except queue.Empty:
            ledger.problem("stuck alone", ask)
            break
        if alone != together:
            different.append((ask, together, alone))
    return different


class Shaken:
    """An engine with noise on its logits, as large as ``noise`` times the largest of them."""

    def __init__(self, engine: Engine, noise: float = 0.0, seed: int = 0) -> None:
        self.spec = replace(engine.spec, graph_capturable=False)
        self._engine, self._noise = engine, noise
        self._generator = torch.Generator(engine.spec.device).manual_seed(seed)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """See :meth:`Engine.forward`."""
        logits = self._engine.forward(batch).float()
        normal = torch.randn(logits.shape, generator=self._generator, device=logits.device)
        return logits + self._noise * logits.abs().max() * normal

    def close(self) -> None:
        """Nothing is kept."""


def first_difference(one: Final, other: Final) -> tuple[int, list[int]] | None:
    """The first pass in which two answers differ, and the places in the answer where they do."""
    pairs = itertools.zip_longest(
        zip(one.token_ids, one.commit_steps, strict=True), zip(other.token_ids, other.commit_steps, strict=True)
    )
    steps = {
        place: min(pair[1] for pair in pairs_here if pair is not None)
        for place, pairs_here in enumerate(pairs)
        if pairs_here[0] != pairs_here[1]
    }
    if not steps:
        return None
    first = min(steps.values())
    return first, [place for place, step in steps.items() if step == first]


def deciding_noise(engine: Engine, asker: Asker, ask: Ask, alone: Final, together: Final) -> float | None:
    """The least noise on the logits that changes their first decision which differs; None if it cannot be had."""
    found = first_difference(together, alone)
    if found is None:
        return None
    number, places = found
    prompt = prompt_ids(asker, ask.prompt)
    decoder = Decoder(Shaken(engine))
    decoder.admit(0, prompt, ask.params)
    for _ in range(number - 1):
        decoder.step([0])
    if not _has_history(decoder.read(0)[1][len(prompt) :], alone, number):
        return None
    at = [len(prompt) + place for place in places]
    undisturbed = _after_pass(engine, decoder, 0.0, 0, at)
    for noise in NOISES:
        if any(_after_pass(engine, decoder, noise, draw, at) != undisturbed for draw in range(DRAWS)):
            return noise
    return math.inf


def prompt_ids(asker: Asker, prompt: Any) -> list[int]:
    """The ids of a good prompt."""
    if isinstance(prompt, list):
        return asker.tokenizer.chat_ids(prompt)
    if isinstance(prompt, dict) and "prompt_token_ids" in prompt:
        return prompt["prompt_token_ids"]
    return asker.tokenizer.encode(prompt if isinstance(prompt, str) else prompt["prompt"])


def _has_history(steps: Sequence[int], final: Final, number: int) -> bool:
    """Whether what was committed before pass ``number`` is what it was in ``final``, as far as that shows."""
    return all(
        (now == step) if step < number else (now == MASKED)
        for now, step in zip(steps, final.commit_steps, strict=False)
    )


def _after_pass(engine: Engine, decoder: Decoder, noise: float, seed: int, at: list[int]) -> list[int]:
    """What a pass leaves at some positions of the request in slot 0, whose state stays as it is."""
    state = decoder.state.clone()
    slots = torch.tensor([0], device=engine.spec.device)
    run_step(Shaken(engine, noise, seed), state, slots, decoder.shape([0]))
    canvas: list[int] = state.progress.canvas[0, at].tolist()
    return canvas


def explaining_noise(quantization: str | None, dtype: str) -> float:
    """Noise on the logits that rounding may amount to."""
    return EXPLAINING_NOISE[quantization or dtype]


def explain(
    directory: Path, device: torch.device, asker: Asker, ledger: Ledger, different: Sequence[tuple[Ask, Final, Final]]
) -> list[dict[str, Any]]:
    """How near each first decision that differs was; one that was not near is a problem."""
    if not different:
        return []
    engine = load_engine(directory, load_manifest(directory), device=device, max_batch_size=1)
    limit, found = explaining_noise(engine.spec.quantization, str(engine.spec.dtype).removeprefix("torch.")), []
    for ask, together, alone in different:
        noise = deciding_noise(engine, asker, ask, alone, together)
        if limit == 0.0 or (noise is not None and noise > limit):
            ledger.problem("different alone", ask, {"together": together, "alone": alone, "noise": noise})
        found.append({**ask.described(), **_difference(together, alone), "noise": noise})
    return found


def _difference(together: Final, alone: Final) -> dict[str, Any]:
    first = first_difference(together, alone)
    names = [name for name, value in vars(together).items() if value != getattr(alone, name)]
    if first is None:
        return {"fields": names}
    number, places = first
    tokens = [final.token_ids[places[0]] if places[0] < len(final.token_ids) else None for final in (together, alone)]
    return {"fields": names, "pass": number, "place": places[0], "token_together": tokens[0], "token_alone": tokens[1]}


# The whole


class Warnings(logging.Handler):
    """Every warning of the runtime is a problem: none belongs to sound traffic."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(logging.WARNING)
        self._ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        """See :meth:`logging.Handler.emit`."""
        self._ledger.problem("warning", None, record.getMessage())


@dataclass(frozen=True)
class Options:
    """Of a run."""

    seconds: float
    batch_size: int
    device: str
    dtype: str
    quantization: str | None
    family: str
    cuda_graphs: str | None
    seed: int
    compare: int
    stuck_after: float


def run(options: Options) -> dict[str, Any]:
    """Build, ask, compare; the report."""
    ledger = Ledger(options.compare, options.seed)
    logging.getLogger("d3llm_trt").addHandler(Warnings(ledger))
    with tempfile.TemporaryDirectory() as folder:
        directory = build_engine(CHECKPOINTS[options.family], Path(folder) / "engine", _build_config(options))
        with LLM(directory, device=options.device, cuda_graphs=options.cuda_graphs) as llm:
            return _run(options, llm, ledger, directory)


def _build_config(options: Options) -> BuildConfig:
    """Half the room that all slots together could need, so that requests also wait for room."""
    limit = 512
    return BuildConfig(
        dtype=options.dtype,
        max_batch_size=options.batch_size,
        max_seq_len=limit,
        max_num_tokens=limit * max(options.batch_size // 2, 1),
        quantization=options.quantization,
    )


def _run(options: Options, llm: LLM, ledger: Ledger, directory: Path) -> dict[str, Any]:
    spec, config = llm.spec, llm.spec.model_config
    assert llm.tokenizer is not None
    asker = Asker(options.seed, spec.max_seq_len, config.vocab_size, config.mask_token_id, llm.tokenizer)
    traffic = Traffic(llm, asker, ledger, time.perf_counter() + options.seconds)
    samples = drive(traffic, options.seconds, options.stuck_after, spec.device)
    check_idle(llm, ledger)
    memory = growth(samples, options.seconds)
    counts = spec.device.type == "cuda" or options.dtype == "float32"
    for name, facts in memory.items():
        if not facts["flat"] and (counts or name != "rss"):
            ledger.problem(f"{name} grows", None, facts)
    print(f"{len(ledger.kept)} answers are asked for again alone", flush=True)
    different = compare_alone(llm, asker, ledger, options.stuck_after)
    explained = explain(directory, spec.device, asker, ledger, different)
    return _report(options, spec.device, ledger, samples, memory, explained)


def _report(
    options: Options,
    device: torch.device,
    ledger: Ledger,
    samples: Sequence[Sample],
    memory: dict[str, dict[str, Any]],
    explained: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    noises, limit = [item["noise"] for item in explained], explaining_noise(options.quantization, options.dtype)
    compared = {
        "asked": len(ledger.kept),
        "equal": len(ledger.kept) - len(explained),
        "different": len(explained),
        "explaining_noise": limit,
        "explained": sum(noise is not None and noise <= limit for noise in noises),
        "not_repeatable": sum(noise is None for noise in noises),
        "largest_noise": max((noise for noise in noises if noise is not None), default=None),
        "differences": list(explained[:MOST_DETAILS]),
    }
    return {
        "passed": not ledger.problems,
        "options": asdict(options),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "counts": dict(ledger.counts),
        "by_kind": dict(sorted(ledger.kinds.items())),
        "slowest_seconds": ledger.slowest,
        "problems": dict(ledger.problems),
        "problem_details": ledger.details,
        "compared_alone": compared,
        "memory": memory,
        "samples": [{name: value for name, value in asdict(s).items() if value is not None} for s in samples],
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table."""
    table = Table("what", "how much", title=f"{report['device']}: {'passed' if report['passed'] else 'FAILED'}")
    compared = report["compared_alone"]
    rows = {**report["counts"], **{f"slowest {name}, s": f"{s:.2f}" for name, s in report["slowest_seconds"].items()}}
    rows |= {f"alone: {name}": compared[name] for name in ("asked", "equal", "different", "explained")}
    for name, facts in report["memory"].items():
        unit = 1 if name == "threads" else MIB
        second, last = facts["second_quarter"] / unit, facts["last_quarter"] / unit
        rows[f"{name}{'' if unit == 1 else ', MiB'}"] = (
            f"{second:.1f} -> {last:.1f}, at most +{facts['allowed'] // unit}"
        )
    rows |= {f"PROBLEM: {name}": count for name, count in report["problems"].items()}
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--quantization", choices=["fp8"])
    parser.add_argument("--family", choices=sorted(CHECKPOINTS), default="llada")
    parser.add_argument("--cuda-graphs", choices=["all", "largest", "off"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", type=int, default=300, help="answers at most that are asked for again alone")
    parser.add_argument("--stuck-after", type=float, default=60, help="seconds")
    parser.add_argument("--output", type=Path, default=Path("traffic.json"))
    given = vars(parser.parse_args())
    output = given.pop("output")
    report = run(Options(**given))
    output.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    show(report)
    raise SystemExit(not report["passed"])


if __name__ == "__main__":
    main()
