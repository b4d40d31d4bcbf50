"""What becomes of every request, for any thread."""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.random_traffic.answers import independent, retracts, unsound
from benchmarks.random_traffic.requests import Ask, short
from d3llm_trt import RequestOutput

REFUSED_WITHIN = 5.0  # seconds; a bad request never waits for the engine, only for Python
SILENT_WITHIN = 10.0  # seconds after a request is cancelled
MOST_DETAILS = 50  # of one problem


class Ledger:
    """Counts and problems, the requests under way, and a sample of at most ``most`` answers."""

    def __init__(self, most: int) -> None:
        self.lock = threading.RLock()
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.details: list[dict[str, Any]] = []
        self.open: dict[str, Ticket] = {}
        self.slowest = {"answered": 0.0, "refused": 0.0}
        self.kept: list[tuple[float, str, Ask, RequestOutput]] = []
        self._most = most

    def problem(self, what: str, ask: Ask | None = None, detail: object = None) -> None:
        """Something that fails the run."""
        with self.lock:
            self.problems[what] += 1
            if self.problems[what] <= MOST_DETAILS:
                described = {} if ask is None else ask.described()
                self.details.append({"problem": what, **described, "detail": short(detail, 2000)})

    def close(self, ask: Ask, outcome: str, seconds: float) -> None:
        """A request has ended."""
        with self.lock:
            self.open.pop(ask.name, None)
            self.counts[outcome] += 1
            self.kinds[f"{outcome}: {ask.kind if ask.error else ask.settings['decoding']['algorithm']}"] += 1
            if outcome in self.slowest:
                self.slowest[outcome] = max(self.slowest[outcome], seconds)

    def keep(self, ask: Ask, output: RequestOutput) -> None:
        """An answer for the sample, if its lot is among the highest."""
        with self.lock:
            heapq.heappush(self.kept, (ask.lot, ask.name, ask, independent(output)))
            if len(self.kept) > self._most:
                heapq.heappop(self.kept)

    def declare_stuck(self, seconds: float) -> None:
        """Give up on what is open for longer than this."""
        with self.lock:
            for ticket in [ticket for ticket in self.open.values() if ticket.age > seconds]:
                ticket.end("stuck")


@dataclass(eq=False)
class Ticket:
    """A request from its asking to its end: a sink that checks what it is given.

    An error inside its ``with`` block is the request's, and must be the right one.
    """

    ledger: Ledger
    ask: Ask
    start: float = field(default_factory=time.perf_counter)
    outcome: str | None = None
    _ended: float = 0.0
    _seen: int = 0
    _last: RequestOutput | None = None

    def __enter__(self) -> Ticket:
        with self.ledger.lock:
            self.ledger.open[self.ask.name] = self
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, Exception):
            self._fail(error, self.age)
        return isinstance(error, Exception)

    @property
    def age(self) -> float:
        """Seconds since it was asked."""
        return time.perf_counter() - self.start

    @property
    def is_left(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self.ask.leave_after is not None and self.age > self.ask.leave_after

    def see(self, output: RequestOutput) -> None:
        """The next output."""
        with self.ledger.lock:
            if self.outcome is not None:
                if self.outcome != "cancelled" or time.perf_counter() - self._ended > SILENT_WITHIN:
                    self.ledger.problem(f"output after it was {self.outcome}", self.ask, output)
                return
            self._seen += 1
            if output.error is not None:
                self._fail(output.error, output.metrics.latency)
                return
            if self._last is not None and retracts(self._last, output):
                self.ledger.problem("retracted", self.ask, (self._last.outputs, output.outputs))
            self._last = output
            if output.finished:
                self._finish(output)

    def end(self, outcome: str, seconds: float | None = None) -> None:
        """It is answered, or nobody waits for it any more; nothing happens if it has ended before."""
        with self.ledger.lock:
            if self.outcome is None:
                self.outcome, self._ended = outcome, time.perf_counter()
                self.ledger.close(self.ask, outcome, self.age if seconds is None else seconds)
                if outcome in ("lost", "stuck"):
                    self.ledger.problem(outcome, self.ask, f"{self._seen} outputs in {self.age:.1f} seconds")

    def _fail(self, error: Exception, seconds: float) -> None:
        wanted = self.ask.error
        if wanted is None:
            self.ledger.problem("good request failed", self.ask, error)
        elif not isinstance(error, wanted):
            self.ledger.problem(f"bad request raised {type(error).__name__}, not {wanted.__name__}", self.ask, error)
        elif seconds > REFUSED_WITHIN:
            self.ledger.problem("bad request refused late", self.ask, seconds)
        self.end("refused", seconds)

    def _finish(self, output: RequestOutput) -> None:
        self.end("answered")
        if self.ask.error is not None:
            self.ledger.problem("bad request answered", self.ask, output)
            return
        for wrong in unsound(self.ask, output, self._seen):
            self.ledger.problem(f"unsound answer: {wrong}", self.ask, output)
        self.ledger.keep(self.ask, output)
