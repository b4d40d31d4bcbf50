"""The Python backend's model: requests go to the runtime's scheduler, outputs go back as they come.

Imported by the ``model.py`` of a generated repository, inside Triton's Python backend only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from d3llm_trt.errors import ConfigError, D3llmError, RequestError
from d3llm_trt.runtime.llm import LLM
from d3llm_trt.runtime.outputs import RequestOutput
from d3llm_trt.runtime.sampling_params import SamplingParams
from d3llm_trt.runtime.triton.fields import INPUTS, OUTPUTS
from d3llm_trt.runtime.triton.metrics import Metrics
from d3llm_trt.runtime.triton.parsing import Parsed, parse

POLL_SECONDS = 0.02  # between two looks for cancelled requests
DTYPES = {"STRING": np.object_, "INT64": np.int64, "FP64": np.float64, "BOOL": np.bool_}


class TritonPythonModel:
    """Triton's interface. One instance has one engine, and one thread of the runtime that steps it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine beside this model and decode once, so that the first request is not slow."""
        parameters = {
            name: item["string_value"] for name, item in json.loads(args["model_config"])["parameters"].items()
        }
        engine = Path(args["model_repository"]) / args["model_version"] / parameters["engine_dir"]
        gpu = args["model_instance_kind"] == "GPU"
        self._llm = LLM(engine, device=f"cuda:{args['model_instance_device_id']}" if gpu else "cpu")
        self._most = int(parameters["max_queue_size"]) + self._llm.spec.max_batch_size
        self._replies: dict[str, Reply] = {}
        self._lock = threading.Lock()
        self._metrics = Metrics(pb, args["model_name"], args["model_version"], args["model_instance_name"])
        self._warm_up()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="d3llm-triton", daemon=True)
        self._watcher.start()

    def _warm_up(self) -> None:
        (output,) = self._llm.generate([{"prompt_token_ids": [0]}], SamplingParams(max_tokens=1))
        if output.error is not None:
            raise pb.TritonModelException(f"the warm-up request failed: {output.error}")

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue all requests; their outputs are sent by the runtime's thread."""
        for request in requests:
            tensors = _tensors(request)
            sender = request.get_response_sender()
            try:
                self._accept(sender, tensors)
            except (RequestError, ConfigError) as error:
                _send_error(sender, str(error), pb.TritonError.INVALID_ARG)
            except Overloaded as error:
                _send_error(sender, str(error), pb.TritonError.UNAVAILABLE)
            except D3llmError as error:
                _send_error(sender, f"{error}; reload the model", pb.TritonError.UNAVAILABLE)

    def _accept(self, sender: Any, tensors: dict[str, Any]) -> None:
        asked = parse(tensors)
        # The lock is held while submitting, so that an answer that comes at once finds its entry.
        with self._lock:
            if len(self._replies) >= self._most:
                raise Overloaded(f"{len(self._replies)} requests are waiting or running; try again later")
            request_id = self._llm.submit(asked.prompt, asked.params, self._deliver, stream=asked.stream)
            self._replies[request_id] = Reply(sender, asked)

    def _deliver(self, output: RequestOutput) -> None:
        """On the runtime's thread: send what is new."""
        with self._lock:
            reply = self._replies[output.request_id]
            if output.finished:
                del self._replies[output.request_id]
        reply.send(output)
        if output.finished:
            self._metrics.count(output)

    def _watch(self) -> None:
        """Cancel what the client has given up, and refresh the gauges."""
        while not self._closing.wait(POLL_SECONDS):
            with self._lock:
                gone = [key for key, reply in self._replies.items() if reply.sender.is_cancelled()]
                dropped = [self._replies.pop(key) for key in gone]
            for key, reply in zip(gone, dropped, strict=True):
                self._llm.cancel(key)
                _send_error(reply.sender, "the request was cancelled", pb.TritonError.CANCELLED)
            self._metrics.gauge(*self._llm.load)

    def finalize(self) -> None:
        """End what is left with an error, and the engine."""
        self._closing.set()
        self._llm.close()
        self._watcher.join()


class Overloaded(Exception):
    """The queue is full."""


class Reply:
    """Where one request's outputs go: the new part of each, if it streams."""

    def __init__(self, sender: Any, asked: Parsed) -> None:
        self.sender = sender
        self._asked = asked
        self._sent_ids = 0
        self._sent_text = 0
        self._first = True

    def send(self, output: RequestOutput) -> None:
        """Send an output; the last one closes the response stream."""
        if output.error is not None:
            bad = isinstance(output.error, (RequestError, ConfigError))
            code = pb.TritonError.INVALID_ARG if bad else pb.TritonError.INTERNAL
            _send_error(self.sender, str(output.error), code)
            return
        answer, metrics = output.outputs[0], output.metrics
        text, ids = answer.text[self._sent_text :], answer.token_ids[self._sent_ids :]
        self._sent_text, self._sent_ids = len(answer.text), len(answer.token_ids)
        if self._first and not self._asked.exclude_input:
            text, ids = (output.prompt or "") + text, [*output.prompt_token_ids, *ids]
        self._first = False
        values = (text, ids, metrics.num_forward_passes, metrics.tokens_per_forward, answer.finish_reason or "")
        response = pb.InferenceResponse([_tensor(item, value) for item, value in zip(OUTPUTS, values, strict=True)])
        final = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if output.finished else 0
        self.sender.send(response, flags=final)


def _tensors(request: Any) -> dict[str, Any]:
    found = {item.name: pb.get_input_tensor_by_name(request, item.name) for item in INPUTS}
    return {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}


def _tensor(item: Any, value: Any) -> Any:
    values = value if item.many else [value.encode("utf-8") if isinstance(value, str) else value]
    return pb.Tensor(item.name, np.array(values, dtype=DTYPES[item.kind]))


def _send_error(sender: Any, message: str, code: Any) -> None:
    response = pb.InferenceResponse(error=pb.TritonError(message, code))
    sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
