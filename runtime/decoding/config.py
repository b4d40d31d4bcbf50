"""DecodingConfig: which unmasking algorithm decodes a request, and its settings (spec B)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from d3llm_trt.errors import ConfigError, RequestError
from d3llm_trt.model.config import Family
from d3llm_trt.settings import from_mapping, is_integer, is_number, make_plain, read_settings_file, require

ALGORITHMS = ("FullAttnMultiBlock", "EntropyThreshold", "MultiBlock", "LowConfidence")
AUTO: Literal["auto"] = "auto"
LARGEST = 1 << 30  # of any count; it fits the tensors that hold them

# The published settings: SGLang's defaults for its two algorithms, d3LLM's GSM8K harness for its own.
_DEFAULT_THRESHOLDS: dict[str, dict[Family, float | None]] = {
    "FullAttnMultiBlock": {"llada": 0.4, "dream": 0.4},
    "EntropyThreshold": {"llada": 0.95, "dream": 0.95},
    "MultiBlock": {"llada": 0.5, "dream": 0.4},
    "LowConfidence": {"llada": None, "dream": None},
}


@dataclass(frozen=True)
class DecodingConfig:
    """Settings of one request's decoder. Keys are SGLang's; an unknown key is an error.

    Spec B.1 describes ``FullAttnMultiBlock``, B.2 ``EntropyThreshold``, B.3 to B.5 and B.8a ``MultiBlock``, B.6
    ``LowConfidence``. The command line shows what is said here of each setting.

    Args:
        algorithm: which unmasking algorithm decodes.
        block_size: generated positions per block.
        threshold: entropy (nats) below which a token is committed; ``"auto"`` takes the published value of the
            algorithm and family; ``None`` sets no limit, and for ``LowConfidence`` keeps its fixed schedule.
        block_add_threshold: share of a block that must be decoded before the next block is opened.
        decoded_token_threshold: share of a block that must be decoded before the next block is fully activated.
        cache_delay_iter: ``MultiBlock`` only: passes a finished block waits before its K/V are reused; ``None``
            never reuses any.
        refresh_interval: ``MultiBlock`` with cache or ``window_ahead`` only: a full pass every so many passes; ``None``
            never.
        full_settling: ``MultiBlock`` with cache only: passes are full while a finished block waits for its delay;
            False starts them behind the cache like any other.
        window_ahead: ``MultiBlock`` only: a pass that is not full ends so many blocks behind the last opened one, so
            that masks further away keep their K/V of the last full pass; ``None`` runs to the end.
        published_shift: ``MultiBlock`` with cache, Dream only: score the first position behind the cache by its own
            row, as published, instead of by the row before.
        early_stop: stop once the answer's first EOS is certain.
        steps: ``LowConfidence`` only: passes for the whole answer; ``None`` commits one token per pass.
    """

    algorithm: str = "FullAttnMultiBlock"
    block_size: int = 32
    threshold: float | Literal["auto"] | None = AUTO
    block_add_threshold: float = 0.1
    decoded_token_threshold: float = 0.95
    cache_delay_iter: int | None = None
    refresh_interval: int | None = None
    full_settling: bool = True
    window_ahead: int | None = None
    published_shift: bool = False
    early_stop: bool = True
    steps: int | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        require(self.algorithm in ALGORITHMS, "algorithm", self.algorithm, ", ".join(ALGORITHMS))
        require(is_integer(self.block_size, 1, LARGEST), "block_size", self.block_size, f"an integer in 1..{LARGEST}")
        limit, share = self.threshold, self.decoded_token_threshold
        known = limit is None or limit == AUTO or is_number(limit)
        require(known, "threshold", limit, 'a number (nats), "auto" or None')
        require(is_number(self.block_add_threshold), "block_add_threshold", self.block_add_threshold, "a number")
        require(is_number(share) and share <= 1.0, "decoded_token_threshold", share, "a number of at most 1.0")
        for name, low in (("cache_delay_iter", 0), ("refresh_interval", 1), ("window_ahead", 0), ("steps", 1)):
            value = getattr(self, name)
            sound = value is None or is_integer(value, low, LARGEST)
            require(sound, name, value, f"None or an integer in {low}..{LARGEST}")
        for name in ("early_stop", "full_settling", "published_shift"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        self._require_used("cache_delay_iter", "MultiBlock")
        self._require_used("refresh_interval", "MultiBlock")
        self._require_used("window_ahead", "MultiBlock")
        self._require_used("steps", "LowConfidence")
        if self.refresh_interval is not None and self.cache_delay_iter is None and self.window_ahead is None:
            raise ConfigError(
                "refresh_interval needs cache_delay_iter or window_ahead: without them every pass is a full one"
            )
        for name, value in (("full_settling", False), ("published_shift", True)):
            if getattr(self, name) is value and self.cache_delay_iter is None:
                raise ConfigError(f"{name} is {value!r}, which needs cache_delay_iter; set it, or leave out {name}")

    def _require_used(self, name: str, algorithm: str) -> None:
        value = getattr(self, name)
        if value is not None and self.algorithm != algorithm:
            raise ConfigError(f"{name} is {value!r}, but {self.algorithm} does not use it; only {algorithm} does")

    def threshold_for(self, family: Family) -> float | None:
        """The entropy threshold in nats with ``"auto"`` resolved; ``None`` means no limit."""
        if self.threshold == AUTO:
            return _DEFAULT_THRESHOLDS[self.algorithm][family]
        return self.threshold

    def with_changes(self, **changes: Any) -> DecodingConfig:
        """A copy with some settings replaced. Raises ConfigError on an unknown name or a bad value."""
        return self.from_dict({**vars(self), **changes})

    def num_blocks(self, max_tokens: int) -> int:
        """Blocks of an answer of ``max_tokens`` positions; an empty answer is one empty block."""
        return max(1, math.ceil(max_tokens / self.block_size))

    def steps_per_block(self, max_tokens: int) -> int:
        """Passes for each block of an answer, or 0 for one token per pass.

        Raises RequestError unless ``steps`` is a multiple of the number of blocks and at most ``max_tokens``.
        """
        if self.steps is None:
            return 0
        blocks = self.num_blocks(max_tokens)
        if self.steps % blocks or self.steps > max_tokens:
            raise RequestError(
                f"steps is {self.steps}; allowed: multiples of {blocks}, the number of blocks, up to max_tokens, "
                f"{max_tokens}; choose another number, or another block_size"
            )
        return self.steps // blocks

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecodingConfig:
        """The settings in a mapping. Raises ConfigError on an unknown key or a bad value."""
        return from_mapping(cls, values, "decoding config")

    @classmethod
    def from_file(cls, path: str | Path) -> DecodingConfig:
        """The settings in a YAML or JSON file. Raises ConfigError if it cannot be read, and as :meth:`from_dict`."""
        values = read_settings_file(path)
        return from_mapping(cls, {} if values is None else values, f"decoding config {path}")
