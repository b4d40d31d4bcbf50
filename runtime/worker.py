"""Worker: the one thread that steps a scheduler, and the way into it from any other thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from d3llm_trt.errors import EngineError
from d3llm_trt.runtime.request import Request
from d3llm_trt.runtime.scheduler import Scheduler

Errand = Callable[[], None]


class Worker:
    """Runs errands (add, cancel) between steps, and steps while there is work."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._errands: list[Errand] = []
        self._changed = threading.Condition()
        self._closed = False
        self._failure: EngineError | None = None
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="d3llm-trt", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Queue a request. Raises EngineError once the worker is closed or has failed."""
        self._send(lambda: self._scheduler.add(request))

    def cancel(self, request_id: str) -> None:
        """Forget a request; nothing happens if it is finished or the worker is closed."""
        with suppress(EngineError):
            self._send(lambda: self._scheduler.cancel(request_id))

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered."""
        return self._failure is None and self._scheduler.healthy

    @property
    def load(self) -> tuple[int, int]:
        """How many requests wait, and how many run."""
        return self._scheduler.load

    def close(self) -> None:
        """End all requests with an error, and the thread."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _send(self, errand: Errand) -> None:
        if os.getpid() != self._process:
            raise EngineError("this LLM was opened in another process; open one after forking")
        with self._changed:
            if self._closed:
                raise EngineError("this LLM is closed; open a new one")
            if self._failure is not None:
                raise self._failure
            self._errands.append(errand)
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._run_errands():
                self._scheduler.step()
            self._end(EngineError("this LLM was closed before the request finished; open a new one"))
        except BaseException as error:  # noqa: BLE001 (a request must never wait for a thread that is dead)
            self._end(EngineError(f"the scheduler failed: {type(error).__name__}: {error}"))

    def _run_errands(self) -> bool:
        """Wait until there is something to do, and do all errands. False once the worker is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._errands or self._scheduler.has_work)
            if self._closed:
                return False
            errands, self._errands = self._errands, []
        for errand in errands:
            errand()
        return True

    def _end(self, error: EngineError) -> None:
        with self._changed:
            self._failure = error
            errands, self._errands = self._errands, []
        for errand in errands:
            errand()
        self._scheduler.fail_all(error)
        self._scheduler.close()
