"""One answer as text, as a row of JSON, and as a line of statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from d3llm_trt.errors import D3llmError
from d3llm_trt.prompt_files import Entry
from d3llm_trt.runtime.outputs import CompletionOutput, RequestMetrics, RequestOutput


def answer_row(index: int, entry: Entry, others: Mapping[str, Any], output: RequestOutput) -> dict[str, Any]:
    """Everything about an answer: ``output.to_dict()``, the first answer's keys again at the top, and ``others``.

    ``prompt`` is the text that was given, also where it was asked as a chat. A key of ``others`` that the answer has
    too gets ``input_`` before it.
    """
    values = output.to_dict()
    del values["canvas"]
    first = {name: value for name, value in values["outputs"][0].items() if name != "index"}
    row = {"index": index, "input_sha256": entry.sha256, **values, **first}
    if isinstance(entry.prompt, str):
        row["prompt"] = entry.prompt
    for name, value in others.items():
        while name in row:
            name = f"input_{name}"
        row[name] = value
    return row


def answer_text(output: RequestOutput, has_text: bool) -> str:
    """The text of every answer to one prompt, or their token ids where the model has no tokenizer."""
    texts = (answer.text if has_text else " ".join(map(str, answer.token_ids)) for answer in output.outputs)
    return "\n".join(texts)


def statistics(output: RequestOutput) -> str:
    """How an answer was made."""
    metrics = output.metrics
    passes, rate = metrics.num_forward_passes, metrics.tokens_per_forward
    return f"{passes} forward passes, {num_tokens(output)} tokens, {rate:.2f} TPF, {metrics.latency:.2f} s"


def num_tokens(output: RequestOutput) -> int:
    """Tokens of all answers to one prompt."""
    return sum(len(answer.token_ids) for answer in output.outputs)


def refused(request_id: str, error: D3llmError) -> RequestOutput:
    """The output of a prompt that was not asked."""
    completion = CompletionOutput(finish_reason="error")
    return RequestOutput(request_id, None, [], [completion], True, RequestMetrics(), error)
