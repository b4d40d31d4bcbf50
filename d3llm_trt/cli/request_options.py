"""The options of one request: one for each field of SamplingParams and of DecodingConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from d3llm_trt.cli.options import NONE, PATH, Command, OneOf, Several, chosen, config_options
from d3llm_trt.runtime.decoding.config import ALGORITHMS, AUTO, DecodingConfig
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams

_DECODING_FIELDS = config_options(
    DecodingConfig,
    unset="off",
    algorithm={"type": click.Choice(ALGORITHMS)},
    threshold={"type": OneOf(float, AUTO, NONE)},
)
sampling_options = config_options(
    SamplingParams,
    unset=NONE,
    stop={"multiple": True, "help": "End the answer before this text, or special token; may be repeated."},
    stop_token_ids={"type": Several(int)},
)


def decoding_options(command: Command) -> Command:
    """The options that set a DecodingConfig: a file of settings, and one for each field."""
    text = "YAML or JSON file of decoding settings; the options below override it."
    return click.option("--decoding", type=PATH, help=text)(_DECODING_FIELDS(command))


def decoding_config(options: Mapping[str, Any]) -> DecodingConfig:
    """The settings file's configuration, or the default one, with the given options on top. Raises ConfigError."""
    file = options["decoding"]
    config = DecodingConfig.from_file(file) if file else DecodingConfig()
    return config.with_changes(**chosen(DecodingConfig, options))


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """The settings that the command line gives. Raises ConfigError or RequestError."""
    return SamplingParams(**{**chosen(SamplingParams, options), "decoding": decoding_config(options)})
