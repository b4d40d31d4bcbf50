"""LLM: prompts to answers, on the threads of whoever asks, with one engine behind."""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import sys
import weakref
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from d3llm_trt.dtypes import dtype_name
from d3llm_trt.engine_source import source_directory
from d3llm_trt.errors import EngineError, RequestError
from d3llm_trt.progress import OnProgress, build_progress
from d3llm_trt.prompts import prompt_list
from d3llm_trt.runtime.answer import failed_output
from d3llm_trt.runtime.decoder import Decoder
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams, as_sampling_params
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.loading import choose_device, open_engine
from d3llm_trt.runtime.outputs import RequestOutput
from d3llm_trt.runtime.request import Request, RequestMaker, Sink
from d3llm_trt.runtime.samples import Samples
from d3llm_trt.runtime.scheduler import Scheduler
from d3llm_trt.runtime.stepping.factory import make_stepper
from d3llm_trt.runtime.stepping.policy import parse_policy
from d3llm_trt.runtime.worker import Worker
from d3llm_trt.settings import plain, require, require_path
from d3llm_trt.tokenizer import Tokenizer

_LOG = logging.getLogger(__name__)
AnyParams = SamplingParams | Mapping[str, Any]


class LLM:
    """A d3LLM model that answers prompts.

    Args:
        model: an engine directory, or a Hugging Face checkpoint directory, which is built into the cache directory
            first (``$D3LLM_TRT_CACHE``, by default ``~/.cache/d3llm-trt``), or a checkpoint of the Hugging Face Hub
            as ``org/name`` or ``org/name@revision``, which is downloaded before that.
        revision: a branch, tag or commit, where ``model`` is of the Hub.
        backend: of a checkpoint's engine; an engine directory has its own.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; by default a GPU if there is one.
        dtype: of a checkpoint's engine; by default the checkpoint's.
        max_batch_size: requests decoded together; by default, and at most, the engine's.
        cuda_graphs: ``all``, ``largest`` or ``off``; by default what the engine and the GPU can. Those that one
            request of up to 512 tokens needs are captured before the first request.
        progress: called as ``progress(stage, done, total)``; by default a bar on a terminal.

    A prompt is a text, which is encoded as it is, ``{"prompt_token_ids": [...]}`` where mask ids are filled in too,
    or a list of chat messages. Any number of threads may ask at the same time; their requests share the batch.
    Raises ConfigError, CheckpointError or EngineError.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        max_batch_size: int | None = None,
        cuda_graphs: str | None = None,
        progress: OnProgress | None = None,
    ) -> None:
        require_path("model", model)
        require(progress is None or callable(progress), "progress", progress, "None or a function")
        policy, where, slots = parse_policy(cuda_graphs), choose_device(device), plain(max_batch_size)
        source = source_directory(model, revision)  # before our bars, since a download has its own
        with _shown(progress) as show:
            engine, tokenizer = open_engine(
                source, where, backend=backend, dtype=dtype, max_batch_size=slots, progress=show
            )
            decoder = Decoder(make_stepper(engine, policy))
            decoder.warm_up(show)
        self._start(decoder, tokenizer)
        _LOG.info("opened %s: %r", source, self)

    @classmethod
    def over(cls, engine: Engine, tokenizer: Tokenizer | None = None, cuda_graphs: str | None = None) -> LLM:
        """An LLM over an engine that was made elsewhere; without a tokenizer it takes and gives token ids.

        No CUDA graph is captured ahead. Raises ConfigError on ``cuda_graphs`` that do not go with the engine.
        """
        model = cls.__new__(cls)
        model._start(Decoder(make_stepper(engine, parse_policy(cuda_graphs))), tokenizer)
        return model

    def _start(self, decoder: Decoder, tokenizer: Tokenizer | None) -> None:
        self.spec, self.tokenizer = decoder.spec, tokenizer
        self._maker = RequestMaker(self.spec, tokenizer)
        self._worker = Worker(Scheduler(decoder, tokenizer))
        self._numbers = itertools.count()
        self._finalizer = weakref.finalize(self, self._worker.close)

    def generate(
        self,
        prompts: Any,
        sampling_params: AnyParams | Sequence[AnyParams] | None = None,
        *,
        use_tqdm: bool = False,
        raise_on_error: bool = False,
    ) -> list[RequestOutput]:
        """Answer all prompts, in their order; ``use_tqdm`` shows a progress bar on standard error.

        A request that is not acceptable or fails has ``error`` set and an empty answer; the others are not affected,
        unless ``raise_on_error`` raises it. Raises RequestError where ``prompts`` is none, or ``sampling_params``
        differ from them in number, and EngineError once this LLM is closed or its engine is broken.
        """
        listed = prompt_list(prompts)
        params = _one_each(sampling_params, len(listed))
        outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        ids = [str(next(self._numbers)) for _ in listed]
        finished: dict[str, RequestOutput] = {}
        try:
            for request_id, prompt, settings in zip(ids, listed, params, strict=True):
                self._submit_or_fail(request_id, prompt, settings, outputs.put)
            with _progress_bar(len(listed), use_tqdm) as advance:
                while len(finished) < len(ids):
                    output = outputs.get()
                    finished[output.request_id] = _or_raise(output) if raise_on_error else output
                    advance()
        finally:
            for request_id in ids:
                if request_id not in finished:
                    self._worker.cancel(request_id)
        return [finished[request_id] for request_id in ids]

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: AnyParams | Sequence[AnyParams] | None = None,
        **options: bool,
    ) -> list[RequestOutput]:
        """Answer a conversation, or a list of them, as :meth:`generate` does. Raises RequestError, EngineError."""
        return self.generate(messages, sampling_params, **options)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer of the engine. Raises EngineError if it has none."""
        if self.tokenizer is None:
            raise EngineError("this engine has no tokenizer; build it from a checkpoint that has one")
        return self.tokenizer

    def __repr__(self) -> str:
        spec = self.spec
        dtype = dtype_name(spec.dtype)
        precision = dtype if spec.quantization is None else f"{dtype} with {spec.quantization}"
        family, slots = spec.model_config.family, spec.max_batch_size
        return f"LLM({family}, {spec.backend} engine in {precision} on {spec.device}, {slots} slots)"

    def generate_stream(
        self, prompt: Any, sampling_params: AnyParams | None = None, *, canvas: bool = False
    ) -> Iterator[RequestOutput]:
        """Growing committed prefixes of one answer; nothing shown is taken back, and the last one is ``finished``.

        With ``canvas`` there is an output for every pass, with all positions in ``output.canvas``. Raises what is
        wrong with the request, or why it failed. Leaving the loop early cancels the request.
        """
        outputs: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        request_id = self.submit(prompt, sampling_params, outputs.put, stream=True, canvas=canvas)
        stream = self._stream(request_id, outputs)
        # A generator that was never started does not run its own clean-up.
        weakref.finalize(stream, self.cancel, request_id).atexit = False
        return stream

    def _stream(
        self, request_id: str, outputs: queue.SimpleQueue[RequestOutput]
    ) -> Generator[RequestOutput, None, None]:
        try:
            while True:
                output = _or_raise(outputs.get())
                yield output
                if output.finished:
                    return
        finally:
            self.cancel(request_id)

    async def generate_async(
        self, prompt: Any, sampling_params: AnyParams | None = None, *, canvas: bool = False
    ) -> AsyncIterator[RequestOutput]:
        """:meth:`generate_stream` for ``async for``. The event loop is not held: a thread encodes the prompt."""
        loop, outputs = asyncio.get_running_loop(), asyncio.Queue[RequestOutput]()

        def sink(output: RequestOutput) -> None:
            with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
                loop.call_soon_threadsafe(outputs.put_nowait, output)

        submit = partial(self.submit, prompt, sampling_params, sink, stream=True, canvas=canvas)
        submission = asyncio.ensure_future(asyncio.to_thread(submit))
        try:
            request_id = await asyncio.shield(submission)
        except asyncio.CancelledError:
            submission.add_done_callback(self._cancel_submitted)
            raise
        try:
            while True:
                output = _or_raise(await outputs.get())
                yield output
                if output.finished:
                    return
        finally:
            self.cancel(request_id)

    def _cancel_submitted(self, submission: asyncio.Future[str]) -> None:
        """Forget a request that was submitted when nobody waited for it any more."""
        if not submission.cancelled() and submission.exception() is None:
            self.cancel(submission.result())

    def submit(
        self,
        prompt: Any,
        sampling_params: AnyParams | None,
        sink: Sink,
        *,
        stream: bool = False,
        canvas: bool = False,
    ) -> str:
        """Queue one request for a server of your own; returns its id.

        ``sink`` is called on the engine's thread with each output, the last one ``finished``, so it must be quick.
        Raises RequestError on what is wrong with the request, EngineError once closed.
        """
        request_id = str(next(self._numbers))
        require(callable(sink), "sink", sink, "a function", RequestError)
        settings = as_sampling_params(sampling_params)
        self._submit(request_id, prompt, settings, sink, stream=stream, canvas=canvas)
        return request_id

    def _submit(
        self, request_id: str, prompt: Any, params: SamplingParams, sink: Sink, *, stream: bool, canvas: bool
    ) -> None:
        try:
            request = self._maker.make(request_id, prompt, params, sink, stream=stream, canvas=canvas)
        except RequestError as error:
            _LOG.warning("request %s was refused: %s", request_id, error)
            raise
        if request.params.n == 1:
            self._worker.submit(request)
            return
        samples = Samples(request.params.n, sink, stream or canvas)
        for index in range(request.params.n):
            own = request.params.sample(index)
            self._worker.submit(replace(request, params=own, sink=samples.sink_of(index)))

    def cancel(self, request_id: str) -> None:
        """Forget a request: its slot is free at the next step, and its sink is not called any more."""
        self._worker.cancel(request_id)

    @property
    def healthy(self) -> bool:
        """Whether requests can be answered; False once the engine fails again and again, or is closed."""
        return self._worker.healthy

    @property
    def load(self) -> tuple[int, int]:
        """How many requests wait for a slot, and how many have one."""
        return self._worker.load

    def close(self) -> None:
        """End all requests and the engine's thread; asking again raises EngineError."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit_or_fail(self, request_id: str, prompt: Any, params: SamplingParams, sink: Sink) -> None:
        try:
            self._submit(request_id, prompt, params, sink, stream=False, canvas=False)
        except RequestError as error:
            text = prompt if isinstance(prompt, str) else None
            sink(failed_output(Request(request_id, text, [], SamplingParams(), sink), error))


def _one_each(params: Any, count: int) -> Sequence[SamplingParams]:
    if not isinstance(params, (list, tuple)):
        return [as_sampling_params(params)] * count
    if len(params) != count:
        raise RequestError(f"sampling_params has {len(params)} entries for {count} prompts; allowed: one, or one each")
    return [as_sampling_params(one) for one in params]


def _or_raise(output: RequestOutput) -> RequestOutput:
    if output.error is not None:
        raise output.error
    return output


@contextmanager
def _shown(progress: OnProgress | None) -> Iterator[OnProgress | None]:
    if progress is not None:
        yield progress
        return
    with build_progress() as bar:
        yield bar


@contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Any]:
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(file=sys.stderr), transient=True) as bars:
        task = bars.add_task("answers", total=total)
        yield lambda: bars.advance(task)
