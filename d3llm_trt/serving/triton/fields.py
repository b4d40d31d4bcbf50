"""The model's inputs and outputs: names, Triton types, and what each becomes in a request."""

from __future__ import annotations

from dataclasses import dataclass, fields

from d3llm_trt.runtime.decoding.config import DecodingConfig


@dataclass(frozen=True)
class Field:
    """One tensor of one value, or of any number (``many``)."""

    name: str
    kind: str
    many: bool = False


KINDS = {"str": "STRING", "int": "INT64", "float": "FP64", "bool": "BOOL"}  # by type in Python
PROMPTS = (Field("text_input", "STRING"), Field("messages", "STRING"), Field("input_ids", "INT64", many=True))
SAMPLING = (
    Field("max_tokens", "INT64"),
    Field("temperature", "FP64"),
    Field("top_p", "FP64"),
    Field("top_k", "INT64"),
    Field("seed", "INT64"),
    Field("min_tokens", "INT64"),
    Field("ignore_eos", "BOOL"),
    Field("end_id", "INT64"),
    Field("stop_words", "STRING", many=True),
    Field("stop_token_ids", "INT64", many=True),
    Field("include_stop_str_in_output", "BOOL"),
    Field("skip_special_tokens", "BOOL"),
)
DECODING = tuple(Field(item.name, KINDS[str(item.type).partition(" ")[0]]) for item in fields(DecodingConfig))
DELIVERY = (Field("stream", "BOOL"), Field("exclude_input_in_output", "BOOL"))
INPUTS = (*PROMPTS, *SAMPLING, *DECODING, *DELIVERY)
OUTPUTS = (
    Field("text_output", "STRING"),
    Field("output_ids", "INT64", many=True),
    Field("num_forward_passes", "INT64"),
    Field("tokens_per_forward", "FP64"),
    Field("finish_reason", "STRING"),
)
