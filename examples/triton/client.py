"""A gRPC client that shows a streamed answer as it grows.

``pip install "tritonclient[grpc]"``, then ``python examples/triton/client.py "a question"`` beside a running server.
"""

from __future__ import annotations

import argparse
import json
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from rich.live import Live
from rich.text import Text

KINDS = {bool: ("BOOL", np.bool_), int: ("INT64", np.int64), float: ("FP64", np.float64), str: ("BYTES", np.object_)}


def stream(url: str, model: str, question: str, **settings: Any) -> Iterator[dict[str, Any]]:
    """The new part of an answer, event by event. Raises InferenceServerException on an error."""
    values = {"messages": json.dumps([{"role": "user", "content": question}]), "stream": True, **settings}
    events: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: events.put((result, error)))
        inputs = [_input(name, value) for name, value in values.items()]
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        while True:
            result, error = events.get()
            if error is not None:
                raise error
            response = result.get_response()
            if response.outputs:
                yield {
                    "text": result.as_numpy("text_output")[0].decode(),
                    "passes": int(result.as_numpy("num_forward_passes")[0]),
                    "reason": result.as_numpy("finish_reason")[0].decode(),
                }
            if response.parameters["triton_final_response"].bool_param:
                return


def _input(name: str, value: Any) -> Any:
    kind, dtype = KINDS[type(value)]
    tensor = grpc.InferInput(name, [1], kind)
    tensor.set_data_from_numpy(np.array([value], dtype=dtype))
    return tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="d3llm")
    parser.add_argument("--algorithm", default="FullAttnMultiBlock")
    args = parser.parse_args()
    shown = Text()
    with Live(shown, auto_refresh=False) as live:
        for event in stream(args.url, args.model, args.question, algorithm=args.algorithm):
            shown.append(event["text"])
            live.update(Text.assemble(shown, (f"\npass {event['passes']} {event['reason']}", "dim")), refresh=True)


if __name__ == "__main__":
    main()
