"""The settings of a chat, by their names: shown, and changed one at a time."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from d3llm_trt.cli.options import NONE
from d3llm_trt.errors import RequestError
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams, as_sampling_params

OF_DECODING = tuple(item.name for item in fields(DecodingConfig))
OF_SAMPLING = tuple(item.name for item in fields(SamplingParams) if item.name not in ("decoding", "n"))


def shown_settings(params: SamplingParams) -> str:
    """A line for each setting."""
    values = {name: getattr(params, name) for name in OF_SAMPLING} | vars(params.decoding)
    width = max(map(len, values))
    return "\n".join(f"{name:{width}}  {_shown(value)}" for name, value in values.items())


def _shown(value: object) -> str:
    return NONE if value is None else json.dumps(value, ensure_ascii=False)


def changed_settings(params: SamplingParams, name: str, text: str | None = None) -> SamplingParams:
    """The settings with the one called ``name`` as ``text`` says: JSON, ``none``, or plain text.

    Raises RequestError or ConfigError naming what is allowed.
    """
    name = name.replace("-", "_")
    if name not in (*OF_SAMPLING, *OF_DECODING):
        raise RequestError(f"setting {name!r} is unknown; allowed: {', '.join((*OF_SAMPLING, *OF_DECODING))}")
    if text is None:
        raise RequestError(f"/set {name} lacks a value; write /set {name} VALUE")
    value = _read(text)
    if name in OF_DECODING:
        return as_sampling_params({**vars(params), "decoding": params.decoding.with_changes(**{name: value})})
    return as_sampling_params({**vars(params), name: value})


def _read(text: str) -> Any:
    if text.lower() == NONE:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
