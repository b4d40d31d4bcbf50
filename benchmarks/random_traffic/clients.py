"""Clients of every kind, which ask at the same time and leave some requests early."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from benchmarks.random_traffic.ledger import Ledger, Ticket
from benchmarks.random_traffic.requests import Ask, make_ask
from d3llm_trt import LLM

SUBMITTED, GENERATING, STREAMING, ASYNCHRONOUS = 16, 2, 4, 6  # requests, threads, threads and tasks


@dataclass(frozen=True)
class Clients:
    """Of one LLM, until a point in time."""

    llm: LLM
    ledger: Ledger
    seed: int
    until: float

    def start(self) -> list[threading.Thread]:
        """Let all of them ask, each in its thread."""
        runs: list[tuple[Callable[[str], None], str]] = [(self._submit_all, "submit"), (self._run_tasks, "async")]
        runs += [(self._generate_all, f"generate{number}") for number in range(GENERATING)]
        runs += [(self._stream_all, f"stream{number}") for number in range(STREAMING)]
        threads = [threading.Thread(target=self._guarded, args=run, daemon=True) for run in runs]
        for thread in threads:
            thread.start()
        return threads

    def _guarded(self, run: Callable[[str], None], client: str) -> None:
        try:
            run(client)
        except Exception as error:  # noqa: BLE001 (a client that dies must fail the run)
            self.ledger.problem("client died", None, f"{client}: {error!r}")

    def _asks(self, client: str) -> Iterator[Ask]:
        for number in itertools.count():
            if time.perf_counter() >= self.until:
                return
            yield make_ask(self.llm, self.seed, f"{client}-{number}")

    def _submit_all(self, client: str) -> None:
        asks, live = self._asks(client), dict[str, Ticket]()
        while True:
            for request_id, ticket in live.items():
                if ticket.is_left:
                    self.llm.cancel(request_id)
                    ticket.end("cancelled")
            live = {request_id: ticket for request_id, ticket in live.items() if ticket.outcome is None}
            ask = next(asks, None) if len(live) < SUBMITTED else None
            if ask is not None:
                with Ticket(self.ledger, ask) as ticket:
                    number = self.llm.submit(ask.prompt, ask.params, ticket.see, stream=ask.stream, canvas=ask.canvas)
                    live[number] = ticket
            elif live:
                time.sleep(0.001)
            else:
                return

    def _generate_all(self, client: str) -> None:
        asks, rng = self._asks(client), random.Random(client)
        while some := list(itertools.islice(asks, rng.randint(1, 3))):
            self._generate(some)

    def _generate(self, asks: Sequence[Ask]) -> None:
        params = {}
        for ask in asks:
            with Ticket(self.ledger, replace(ask, canvas=False)) as ticket:
                params[ticket] = ask.params
        outputs = self.llm.generate([ticket.ask.prompt for ticket in params], list(params.values()))
        for ticket, output in zip(params, outputs, strict=True):
            ticket.see(output)

    def _stream_all(self, client: str) -> None:
        for ask in self._asks(client):
            with Ticket(self.ledger, ask) as ticket:
                for output in self.llm.generate_stream(ask.prompt, ask.params, canvas=ask.canvas):
                    ticket.see(output)
                    if ticket.is_left:
                        break
                ticket.end("cancelled" if ticket.is_left else "lost")

    def _run_tasks(self, client: str) -> None:
        async def run() -> None:
            await asyncio.gather(*(self._async_all(f"{client}{number}") for number in range(ASYNCHRONOUS)))

        asyncio.run(run())

    async def _async_all(self, client: str) -> None:
        for ask in self._asks(client):
            with Ticket(self.ledger, ask) as ticket:
                try:
                    await asyncio.wait_for(self._consume(ask, ticket), ask.leave_after)
                    ticket.end("lost")
                except asyncio.TimeoutError:
                    ticket.end("cancelled")
            await asyncio.sleep(0)

    async def _consume(self, ask: Ask, ticket: Ticket) -> None:
        async with aclosing(self.llm.generate_async(ask.prompt, ask.params, canvas=ask.canvas)) as outputs:
            async for output in outputs:
                ticket.see(output)
