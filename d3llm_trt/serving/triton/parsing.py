"""Triton's tensors to a prompt and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d3llm_trt.errors import RequestError
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.serving.triton.fields import DECODING, INPUTS, PROMPTS, SAMPLING, Field


@dataclass(frozen=True)
class Parsed:
    """What one Triton request asks for."""

    prompt: Any
    params: SamplingParams
    stream: bool
    exclude_input: bool

    def shows_unfilled_masks(self, mask_id: int) -> bool:
        """Whether a stream would begin with masks of the prompt, which are filled in only at the end."""
        masked = isinstance(self.prompt, dict) and mask_id in self.prompt["prompt_token_ids"]
        return self.stream and not self.exclude_input and masked


def parse(tensors: Mapping[str, np.ndarray[Any, Any]]) -> Parsed:
    """Read input tensors by name; what is left out has its default. Raises RequestError or ConfigError."""
    values = {item.name: _value(item, tensors[item.name]) for item in INPUTS if item.name in tensors}
    decoding = {item.name: values[item.name] for item in DECODING if item.name in values}
    sampling = {item.name: values[item.name] for item in SAMPLING if item.name in values}
    stop = sampling.pop("stop_words", None)
    params = SamplingParams(**sampling, stop=stop or None, decoding=DecodingConfig.from_dict(decoding))
    return Parsed(_prompt(values), params, values.get("stream", False), values.get("exclude_input_in_output", True))


def _prompt(values: Mapping[str, Any]) -> Any:
    names = [item.name for item in PROMPTS if item.name in values]
    if len(names) != 1:
        allowed = ", ".join(item.name for item in PROMPTS)
        raise RequestError(f"the request has {names or 'no prompt'}; allowed: exactly one of {allowed}")
    value = values[names[0]]
    if names[0] == "input_ids":
        return {"prompt_token_ids": value}
    if names[0] == "text_input":
        return value
    try:
        messages = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"messages is not valid JSON: {error}") from error
    if not isinstance(messages, list):
        raise RequestError('messages is not a JSON list; allowed: [{"role": ..., "content": ...}, ...]')
    return messages


def _value(item: Field, tensor: np.ndarray[Any, Any]) -> Any:
    values: Sequence[Any] = tensor.reshape(-1).tolist()
    if item.kind == "STRING":
        values = [_text(item.name, value) for value in values]
    if item.many:
        return list(values)
    if len(values) != 1:
        raise RequestError(f"{item.name} has {len(values)} values; allowed: one")
    return values[0]


def _text(name: str, value: Any) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 at byte {error.start}") from error
