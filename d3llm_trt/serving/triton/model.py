"""The Python backend's model: requests go to the runtime's scheduler, outputs go back as they come.

Imported by the ``model.py`` of a generated repository, inside Triton's Python backend only.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb

from d3llm_trt.errors import ConfigError, D3llmError, RequestError
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.llm import LLM
from d3llm_trt.runtime.outputs import RequestOutput
from d3llm_trt.serving.triton.fields import INPUTS, OUTPUTS, Field
from d3llm_trt.serving.triton.metrics import Metrics
from d3llm_trt.serving.triton.parsing import Parsed, parse
from d3llm_trt.serving.triton.watchdog import Watchdog

POLL_SECONDS = 0.02  # between two looks for cancelled requests
DTYPES = {"STRING": np.object_, "INT64": np.int64, "FP64": np.float64, "BOOL": np.bool_}
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_LOG = logging.getLogger(__name__)


class TritonPythonModel:
    """Triton's interface. One instance has one engine, and one thread of the runtime that steps it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine beside this model and decode once, so that the first request is not slow."""
        config = json.loads(args["model_config"])
        parameters = {name: item["string_value"] for name, item in config["parameters"].items()}
        exit_on_crash = _boolean(parameters, "exit_on_crash", "true")
        engine = Path(args["model_repository"]) / args["model_version"] / parameters["engine_dir"]
        gpu = args["model_instance_kind"] == "GPU"
        if not gpu:
            _share_processors(sum(group["count"] for group in config["instance_group"] if group["kind"] == "KIND_CPU"))
        self._llm = LLM(engine, device=f"cuda:{args['model_instance_device_id']}" if gpu else "cpu")
        self._most = int(parameters["max_queue_size"]) + self._llm.spec.max_batch_size
        self._open: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._metrics = Metrics(pb, args["model_name"], args["model_version"], args["model_instance_name"])
        self._warm_up()
        self._closing = threading.Event()
        # Last: a model that does not load must not end the server.
        self._dismiss_watchdog = _start_watchdog(args["model_instance_name"], exit_on_crash)
        self._watcher = threading.Thread(target=self._watch, name="d3llm-triton", daemon=True)
        self._watcher.start()

    def _warm_up(self) -> None:
        (output,) = self._llm.generate([{"prompt_token_ids": [0]}], SamplingParams(max_tokens=1))
        if output.error is not None:
            raise pb.TritonModelException(f"the warm-up request failed: {output.error}")

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue all requests; their outputs are sent by the runtime's thread. A bad one harms no other."""
        for request in requests:
            reply = Reply(request.get_response_sender())
            try:
                self._accept(reply, request)
            except Exception as error:  # noqa: BLE001 (whatever it is, this request gets it as its answer)
                self._metrics.rejected()
                reply.fail(*_explained(error))

    def _accept(self, reply: Reply, request: Any) -> None:
        if len(self._open) >= self._most:
            raise Overloaded(f"{len(self._open)} requests are waiting or running; try again later")
        parsed = parse(_tensors(request))
        mask_id = self._llm.spec.model_config.mask_token_id
        if parsed.shows_unfilled_masks(mask_id):
            raise RequestError("exclude_input_in_output is False in a stream, but input_ids has masks; leave one out")
        reply.parsed, reply.tokenizer = parsed, self._llm.tokenizer
        sink = partial(self._deliver, reply)
        request_id = self._llm.submit(parsed.prompt, parsed.params, sink, stream=parsed.stream)
        with self._lock:
            if not reply.closed:  # it may be answered already
                self._open[request_id] = reply

    def _deliver(self, reply: Reply, output: RequestOutput) -> None:
        """On the runtime's thread: count, and send what is new."""
        if output.finished:
            self._metrics.count(output)
        try:
            reply.send(output)
        except Exception:  # noqa: BLE001 (the client must still get an end)
            _LOG.exception("request %s: its response could not be sent", output.request_id)
            reply.fail("the response could not be sent", pb.TritonError.INTERNAL)
        if output.finished:
            with self._lock:
                self._open.pop(output.request_id, None)

    def _watch(self) -> None:
        """Cancel what clients have given up, refresh the gauges, and leave once the engine is broken."""
        while not self._closing.wait(POLL_SECONDS):
            with self._lock:
                replies = list(self._open.items())
            for request_id, reply in replies:
                if reply.is_cancelled():
                    self._cancel(request_id, reply)
            self._metrics.gauge(*self._llm.load)
            if not self._llm.healthy:
                # All requests have their errors. Without this process Triton answers that the model is not healthy.
                _LOG.critical("the engine is broken; reload the model")
                self._dismiss_watchdog()
                os._exit(1)

    def _cancel(self, request_id: str, reply: Reply) -> None:
        self._llm.cancel(request_id)
        reply.fail("the request was cancelled", pb.TritonError.CANCELLED)
        self._metrics.cancelled()
        with self._lock:
            self._open.pop(request_id, None)

    def finalize(self) -> None:
        """End what is left with an error, and the engine."""
        self._dismiss_watchdog()  # first: Triton kills a process that takes long to end
        self._closing.set()
        self._watcher.join()
        self._llm.close()


class Overloaded(Exception):
    """The queue is full."""


class Reply:
    """Where one request's outputs go: the new part of each if it streams, and one end, whoever comes first."""

    parsed: Parsed
    tokenizer: Any = None

    def __init__(self, sender: Any) -> None:
        self._sender = sender
        self._lock = threading.Lock()
        self._sent_ids = 0
        self._sent_text = 0
        self._first = True
        self.closed = False

    def is_cancelled(self) -> bool:
        """Whether the client has gone."""
        with self._lock:
            return not self.closed and bool(self._sender.is_cancelled())

    def send(self, output: RequestOutput) -> None:
        """Send an output; the last one closes the response stream."""
        if output.error is not None:
            self.fail(*_explained(output.error))
            return
        with self._lock:
            if self.closed:
                return
            self._sender.send(self._response(output), flags=FINAL if output.finished else 0)
            self.closed = output.finished

    def fail(self, message: str, code: Any) -> None:
        """End with an error, unless it has ended."""
        with self._lock:
            if not self.closed:
                self.closed = True
                self._sender.send(pb.InferenceResponse(error=pb.TritonError(message, code)), flags=FINAL)

    def _response(self, output: RequestOutput) -> Any:
        answer, metrics = output.outputs[0], output.metrics
        text, ids = answer.text[self._sent_text :], answer.token_ids[self._sent_ids :]
        self._sent_text, self._sent_ids = len(answer.text), len(answer.token_ids)
        if self._first and not self.parsed.exclude_input:
            text, ids = self._prompt_text(output) + text, [*output.prompt_token_ids, *ids]
        self._first = False
        values = (text, ids, metrics.num_forward_passes, metrics.tokens_per_forward, answer.finish_reason or "")
        return pb.InferenceResponse([_tensor(item, value) for item, value in zip(OUTPUTS, values, strict=True)])

    def _prompt_text(self, output: RequestOutput) -> str:
        if output.prompt is not None or self.tokenizer is None:
            return output.prompt or ""
        return str(self.tokenizer.decode(output.prompt_token_ids))


def _share_processors(instances: int) -> None:
    """Each instance takes its part of the processors, unless the environment says how many it takes."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // max(1, instances)))


def _boolean(parameters: dict[str, str], name: str, default: str) -> bool:
    value = parameters.get(name, default)
    if value not in ("true", "false"):
        raise pb.TritonModelException(f"{name} is '{value}'; allowed: true or false")
    return value == "true"


def _start_watchdog(instance: str, ends_server: bool) -> Callable[[], None]:
    """Start a watchdog where there can be one, and return what dismisses it."""
    if ends_server and os.getppid() == 1:
        _LOG.warning(
            "exit_on_crash: nothing in a container can kill its process 1, tritonserver; use docker run --init"
        )
    try:
        watchdog = Watchdog(instance, ends_server)
    except Exception as error:  # noqa: BLE001 (whatever it lacks, the model can serve without)
        _LOG.warning("no watchdog, so clients may wait for ever for a backend that crashed: %s", error)
        return lambda: None
    if ends_server and not watchdog.ends_server:
        _LOG.warning("exit_on_crash: Triton runs inside another program, which is not ended")
    return watchdog.dismiss


def _explained(error: Exception) -> tuple[str, Any]:
    """A message for the client, and the code that Triton gives it."""
    if isinstance(error, (RequestError, ConfigError)):
        return str(error), pb.TritonError.INVALID_ARG
    if isinstance(error, Overloaded):
        return str(error), pb.TritonError.UNAVAILABLE
    if isinstance(error, D3llmError):
        return str(error), pb.TritonError.INTERNAL
    _LOG.error("a request failed", exc_info=error)
    return f"the request failed: {type(error).__name__}", pb.TritonError.INTERNAL


def _tensors(request: Any) -> dict[str, Any]:
    tensors = {item.name: pb.get_input_tensor_by_name(request, item.name) for item in INPUTS}
    return {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}


def _tensor(item: Field, value: Any) -> Any:
    values = value if item.many else [value.encode("utf-8") if isinstance(value, str) else value]
    return pb.Tensor(item.name, np.array(values, dtype=DTYPES[item.kind]))
