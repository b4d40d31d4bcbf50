"""The options of one request: SamplingParams and DecodingConfig, an option for each of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from d3llm_trt.cli.options import NONE, PATH, Command, OneOf, Option, Several, given, options_for
from d3llm_trt.runtime.decoding.config import ALGORITHMS, AUTO, DecodingConfig
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams

SAMPLING = {
    "max_tokens": Option(OneOf(int, NONE), "Positions to generate; none for all that fit."),
    "n": Option(int, "Answers to each prompt."),
    "temperature": Option(float, "0 takes the most likely tokens."),
    "seed": Option(OneOf(int, NONE), "Of the sampling at temperatures above 0."),
    "stop": Option(str, "End the answer before this text; may be repeated.", multiple=True),
    "stop_token_ids": Option(Several(int), "Token ids that end an answer too, as in 7,9."),
    "end_id": Option(OneOf(int, NONE), "Token id that ends an answer.", "the checkpoint's"),
    "ignore_eos": Option(bool, "Return all positions."),
    "include_stop_str_in_output": Option(bool, "End the text behind what ended it."),
    "skip_special_tokens": Option(bool, "Leave special tokens out of the text."),
}
DECODING = {
    "algorithm": Option(click.Choice(ALGORITHMS), "Which unmasking algorithm decodes."),
    "block_size": Option(int, "Generated positions per block."),
    "threshold": Option(OneOf(float, AUTO, NONE), "Entropy in nats below which a token is committed."),
    "block_add_threshold": Option(float, "Decoded share of a block that opens the next block."),
    "decoded_token_threshold": Option(float, "Decoded share of a block that fully activates the next block."),
    "cache_delay_iter": Option(
        OneOf(int, NONE), "MultiBlock: passes before a finished block's keys and values are reused.", "off"
    ),
    "refresh_interval": Option(OneOf(int, NONE), "MultiBlock with cache: a full pass every so many passes.", "off"),
    "steps": Option(OneOf(int, NONE), "LowConfidence: passes for the whole answer.", "off"),
    "early_stop": Option(bool, "Stop decoding behind the first end token."),
}


def decoding_options(command: Command) -> Command:
    """The options that set a DecodingConfig: a file of settings, and one for each field."""
    command = options_for(DECODING, DecodingConfig())(command)
    text = "YAML or JSON file of decoding settings; the options below override it."
    return click.option("--decoding", type=PATH, help=text)(command)


def sampling_options(command: Command) -> Command:
    """The options that set SamplingParams."""
    return options_for(SAMPLING, SamplingParams())(command)


def decoding_config(options: Mapping[str, Any]) -> DecodingConfig:
    """The settings file's configuration, or the default one, with the given options on top. Raises ConfigError."""
    file = options["decoding"]
    config = DecodingConfig.from_file(file) if file else DecodingConfig()
    return config.with_changes(**given(DECODING, options))


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """The settings that the command line gives. Raises ConfigError or RequestError."""
    return SamplingParams(**given(SAMPLING, options), decoding=decoding_config(options))
