"""SamplingParams: what one request asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from d3llm_trt.errors import RequestError
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.settings import is_integer, is_number, require


@dataclass(frozen=True)
class SamplingParams:
    """One request's settings. Raises RequestError on a value that is not allowed.

    Args:
        max_tokens: generated positions of the canvas.
        temperature: 0 takes the most likely token; above, tokens are sampled (entropy stays at temperature 1).
        seed: of the sampling; the same seed gives the same tokens whatever else is in the batch.
        ignore_eos: return all ``max_tokens`` ids.
        end_id: replaces the checkpoint's EOS id.
        stop: strings that end the answer; the text stops before the first of them.
        decoding: the unmasking algorithm.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False
    end_id: int | None = None
    stop: str | Sequence[str] | None = None
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, allowed: str) -> None:
            require(condition, name, getattr(self, name), allowed, RequestError)

        need(is_integer(self.max_tokens) and self.max_tokens >= 1, "max_tokens", "an integer of 1 or more")
        need(is_number(self.temperature) and self.temperature >= 0, "temperature", "a number of 0 or more")
        need(is_integer(self.seed) and 0 <= self.seed < 1 << 63, "seed", "an integer in 0..2**63-1")
        need(isinstance(self.ignore_eos, bool), "ignore_eos", "True or False")
        need(self.end_id is None or (is_integer(self.end_id) and self.end_id >= 0), "end_id", "None or a token id")
        need(isinstance(self.decoding, DecodingConfig), "decoding", "a DecodingConfig")
        need(self.stop is None or isinstance(self.stop, (str, Sequence)), "stop", "None, a string, or a list of them")
        need(all(isinstance(text, str) and text for text in self.stop_strings), "stop", "non-empty strings")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
