"""SamplingParams: what one request asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from d3llm_trt.errors import ConfigError, RequestError
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.settings import as_config, has_surrogates, is_integer, is_number, require, use_plain_values

MOST_SAMPLES = 1024


@dataclass(frozen=True)
class SamplingParams:
    """One request's settings. Raises RequestError on a value that is not allowed.

    Args:
        max_tokens: generated positions of the canvas; None takes all that the engine has room for.
        temperature: 0 takes the most likely token; above, tokens are sampled (entropy stays at temperature 1).
        seed: of the sampling; the same seed gives the same tokens whatever else is in the batch.
        ignore_eos: return all ``max_tokens`` ids.
        end_id: replaces the checkpoint's EOS id.
        stop: strings that end the answer, special tokens among them; the text stops before the first of them.
        decoding: the unmasking algorithm, or a mapping of its settings.
        n: answers to each prompt, each with a seed of its own: ``seed``, ``seed + 1``, ...
        stop_token_ids: ids that end the answer too; the text stops before them.
        include_stop_str_in_output: the text ends behind what ended it.
        skip_special_tokens: leave the content of special tokens out of the text.
    """

    max_tokens: int | None = 256
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False
    end_id: int | None = None
    stop: str | Sequence[str] | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    n: int = 1
    stop_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, allowed: str) -> None:
            require(condition, name, getattr(self, name), allowed, RequestError)

        use_plain_values(self)
        if isinstance(self.decoding, Mapping):
            object.__setattr__(self, "decoding", DecodingConfig.from_dict(self.decoding))
        need(
            self.max_tokens is None or (is_integer(self.max_tokens) and self.max_tokens >= 1),
            "max_tokens", "an integer of 1 or more, or None for all that fits",
        )  # fmt: skip
        need(is_integer(self.n) and 1 <= self.n <= MOST_SAMPLES, "n", f"an integer in 1..{MOST_SAMPLES}")
        need(is_number(self.temperature) and self.temperature >= 0, "temperature", "a number of 0 or more")
        need(is_integer(self.seed) and 0 <= self.seed < 1 << 63, "seed", "an integer in 0..2**63-1")
        need(isinstance(self.ignore_eos, bool), "ignore_eos", "True or False")
        need(self.end_id is None or (is_integer(self.end_id) and self.end_id >= 0), "end_id", "None or a token id")
        need(isinstance(self.decoding, DecodingConfig), "decoding", "a DecodingConfig")
        need(self.stop is None or isinstance(self.stop, (str, Sequence)), "stop", "None, a string, or a list of them")
        need(all(isinstance(text, str) and text for text in self.stop_strings), "stop", "non-empty strings")
        need(not any(map(has_surrogates, self.stop_strings)), "stop", "valid Unicode, which an answer can hold")
        ids = self.stop_token_ids
        sound = isinstance(ids, (list, tuple)) and all(is_integer(token_id) and token_id >= 0 for token_id in ids)
        need(ids is None or sound, "stop_token_ids", "None or a list of token ids")
        for name in ("include_stop_str_in_output", "skip_special_tokens"):
            need(isinstance(getattr(self, name), bool), name, "True or False")

    @property
    def num_tokens(self) -> int:
        """``max_tokens`` where it is a number, as for every accepted request. Raises RequestError on None."""
        if self.max_tokens is None:
            raise RequestError("max_tokens is None; allowed: an integer once the length of the prompt is known")
        return self.max_tokens

    def sample(self, index: int) -> SamplingParams:
        """The settings of one of the ``n`` answers."""
        return replace(self, n=1, seed=(self.seed + index) % (1 << 63))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def as_sampling_params(value: object) -> SamplingParams:
    """Settings as a user gives them: SamplingParams, a mapping of some, or None. Raises RequestError."""
    try:
        return as_config(SamplingParams, value, "sampling_params")
    except ConfigError as error:
        raise RequestError(str(error)) from error
