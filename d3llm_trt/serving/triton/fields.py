"""The model's inputs and outputs: names, Triton types, and what each becomes in a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One tensor of one value, or of any number (``many``)."""

    name: str
    kind: str
    many: bool = False


PROMPTS = (Field("text_input", "STRING"), Field("messages", "STRING"), Field("input_ids", "INT64", many=True))
SAMPLING = (
    Field("max_tokens", "INT64"),
    Field("temperature", "FP64"),
    Field("seed", "INT64"),
    Field("ignore_eos", "BOOL"),
    Field("end_id", "INT64"),
    Field("stop_words", "STRING", many=True),
)
DECODING = (
    Field("algorithm", "STRING"),
    Field("block_size", "INT64"),
    Field("threshold", "FP64"),
    Field("block_add_threshold", "FP64"),
    Field("decoded_token_threshold", "FP64"),
    Field("cache_delay_iter", "INT64"),
    Field("refresh_interval", "INT64"),
    Field("full_settling", "BOOL"),
    Field("window_ahead", "INT64"),
    Field("published_shift", "BOOL"),
    Field("early_stop", "BOOL"),
    Field("steps", "INT64"),
)
DELIVERY = (Field("stream", "BOOL"), Field("exclude_input_in_output", "BOOL"))
INPUTS = (*PROMPTS, *SAMPLING, *DECODING, *DELIVERY)
OUTPUTS = (
    Field("text_output", "STRING"),
    Field("output_ids", "INT64", many=True),
    Field("num_forward_passes", "INT64"),
    Field("tokens_per_forward", "FP64"),
    Field("finish_reason", "STRING"),
)
