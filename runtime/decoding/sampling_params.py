"""SamplingParams: what one request asks for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from d3llm_trt.errors import ConfigError, RequestError
from d3llm_trt.runtime.decoding.config import LARGEST, DecodingConfig
from d3llm_trt.settings import as_config, has_surrogates, is_integer, is_number, make_plain, require

MOST_SAMPLES = 1024
LEAST_TEMPERATURE, MOST_TEMPERATURE = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # that float32 holds in full


@dataclass(frozen=True)
class SamplingParams:
    """One request's settings. Raises RequestError on a value that is not allowed; takes numbers of numpy and torch.

    Args:
        max_tokens: generated positions of the canvas; None takes all that the engine has room for, and 0 only fills in
            the masks of the prompt.
        temperature: 0 takes the most likely token; above, tokens are sampled (entropy stays at temperature 1).
        seed: of the sampling; the same seed gives the same tokens whatever else is in the batch. None draws one for
            each request, which its output tells.
        ignore_eos: return all ``max_tokens`` ids.
        end_id: replaces the checkpoint's end ids.
        stop: strings that end the answer, special tokens among them; the text stops before the first of them.
        decoding: the unmasking algorithm, or a mapping of its settings.
        n: answers to each prompt, each with a seed of its own: ``seed``, ``seed + 1``, ...
        top_p: sample from the fewest tokens whose share of the probability at the temperature, of what ``top_k``
            leaves, reaches it; 1 takes all.
        top_k: sample from the so many most likely tokens; 0 or -1 takes all.
        min_tokens: positions of the answer, from its beginning, in which no end id and no stop id stands.
        stop_token_ids: ids that end the answer beside the end ids; the text stops before them.
        logprobs: tell of each token the log probability (nats, at temperature 1) in the pass that committed it. None
            or False: no; True, or as elsewhere 0 or 1: yes. That of other tokens is not known.
        include_stop_str_in_output: the text ends behind what ended it.
        skip_special_tokens: leave the content of special tokens out of the text.
    """

    max_tokens: int | None = 256
    temperature: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    end_id: int | None = None
    stop: str | Sequence[str] | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    n: int = 1
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0
    stop_token_ids: Sequence[int] = ()
    logprobs: bool | int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, allowed: str) -> None:
            require(condition, name, getattr(self, name), allowed, RequestError)

        make_plain(self)
        if isinstance(self.decoding, Mapping):
            object.__setattr__(self, "decoding", DecodingConfig.from_dict(self.decoding))
        sized = self.max_tokens is None or is_integer(self.max_tokens, 0)
        need(sized, "max_tokens", "an integer of 0 or more, or None for all that fits")
        need(is_integer(self.n, 1, MOST_SAMPLES), "n", f"an integer in 1..{MOST_SAMPLES}")
        need(
            is_number(self.temperature)
            and (self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE),
            "temperature", f"0, or a number in {LEAST_TEMPERATURE:.3g}..{MOST_TEMPERATURE:.3g}, as float32 holds",
        )  # fmt: skip
        need(self.seed is None or is_integer(self.seed, 0, (1 << 63) - 1), "seed", "None or an integer in 0..2**63-1")
        need(isinstance(self.ignore_eos, bool), "ignore_eos", "True or False")
        need(self.end_id is None or is_integer(self.end_id, 0), "end_id", "None or a token id")
        need(isinstance(self.decoding, DecodingConfig), "decoding", "a DecodingConfig")
        need(self.stop is None or isinstance(self.stop, (str, Sequence)), "stop", "None, a string, or a list of them")
        need(all(isinstance(text, str) and text for text in self.stop_strings), "stop", "non-empty strings")
        need(not any(map(has_surrogates, self.stop_strings)), "stop", "valid Unicode, which an answer can hold")
        for name in ("include_stop_str_in_output", "skip_special_tokens"):
            need(isinstance(getattr(self, name), bool), name, "True or False")
        need(is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "a number above 0, up to 1")
        need(is_integer(self.top_k, -1), "top_k", "a number of tokens, or 0 or -1 for all")
        most = LARGEST if self.max_tokens is None else self.max_tokens
        need(is_integer(self.min_tokens, 0, most), "min_tokens", f"an integer in 0..max_tokens, {most}")
        self._take_stop_token_ids()
        known = self.logprobs is None or isinstance(self.logprobs, bool) or self.logprobs in (0, 1)
        need(known, "logprobs", "None, True, False, 0 or 1: only the committed tokens' are known")

    def _take_stop_token_ids(self) -> None:
        """Make them a tuple of Python's integers."""
        given: object = self.stop_token_ids
        plain = given.tolist() if hasattr(given, "tolist") else () if given is None else given
        sound = isinstance(plain, (list, tuple)) and all(is_integer(token_id, 0) for token_id in plain)
        require(sound, "stop_token_ids", given, "None or a list of token ids", RequestError)
        object.__setattr__(self, "stop_token_ids", tuple(plain))  # type: ignore[arg-type]

    @property
    def num_tokens(self) -> int:
        """``max_tokens`` where it is a number, as for every accepted request. Raises RequestError on None."""
        if self.max_tokens is None:
            raise RequestError("max_tokens is None; allowed: an integer once the length of the prompt is known")
        return self.max_tokens

    def sample(self, index: int) -> SamplingParams:
        """The settings of one of the ``n`` answers; the first seed must be known."""
        return replace(self, n=1, seed=None if self.seed is None else (self.seed + index) % (1 << 63))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def tells_logprobs(self) -> bool:
        """Whether the output has log probabilities."""
        return self.logprobs is not None and self.logprobs is not False

    def with_seed(self) -> SamplingParams:
        """These settings with a seed that is drawn now, where one is needed and none is given."""
        if self.seed is not None or self.temperature == 0:
            return self
        return replace(self, seed=secrets.randbits(63))


def as_sampling_params(value: object) -> SamplingParams:
    """Settings as a user gives them: SamplingParams, a mapping of some, or None. Raises RequestError."""
    try:
        return as_config(SamplingParams, value, "sampling_params")
    except ConfigError as error:
        raise RequestError(str(error)) from error
