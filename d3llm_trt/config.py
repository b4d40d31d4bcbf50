"""BuildConfig, and the strict reading of settings from mappings and YAML or JSON files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from d3llm_trt.errors import ConfigError

BACKENDS = ("torch",)
DTYPES = ("auto", "bfloat16", "float16", "float32")
DEFAULT_MAX_SEQ_LEN = 2048

Settings = TypeVar("Settings")


def require(condition: bool, name: str, value: object, allowed: str, error: type[Exception] = ConfigError) -> None:
    """Raise ``error`` naming the setting, its value and what is allowed, unless ``condition`` holds."""
    if not condition:
        raise error(f"{name} is {value!r}; allowed: {allowed}")


def is_integer(value: object) -> bool:
    """Whether ``value`` is an int; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float; a bool is not."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def from_mapping(cls: type[Settings], values: Mapping[str, Any], source: str) -> Settings:
    """Build the dataclass ``cls`` from ``values``. Raises ConfigError on a key that ``cls`` does not have."""
    known = sorted(field.name for field in fields(cls))  # type: ignore[arg-type]
    require(isinstance(values, Mapping), source, values, f"a mapping with keys of {known}")
    if unknown := sorted(str(key) for key in values if key not in known):
        raise ConfigError(f"{source}: unknown key {unknown[0]!r}; allowed: {', '.join(known)}")
    return cls(**values)


def read_settings_file(path: str | Path) -> Any:
    """The content of a ``.yaml``, ``.yml`` or ``.json`` file. Raises ConfigError if it cannot be read."""
    import yaml

    path = Path(path)
    require(path.suffix in (".yaml", ".yml", ".json"), "settings file", str(path), "a .yaml, .yml or .json file")
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path}: cannot be read: {error}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"settings file {path}: not valid {kind}: {error}") from error


@dataclass(frozen=True)
class BuildConfig:
    """What an engine is built for.

    Args:
        backend: how the network is compiled; ``torch`` packs the weights.
        dtype: of weights and activations; ``auto`` keeps the checkpoint's.
        max_batch_size: slots, so requests that are decoded together.
        max_seq_len: prompt plus ``max_tokens`` of one request; by default the model's limit, at most 2048.
        max_num_tokens: rows of one forward pass over all requests; by default ``max_batch_size * max_seq_len``.
    """

    backend: str = "torch"
    dtype: str = "auto"
    max_batch_size: int = 8
    max_seq_len: int | None = None
    max_num_tokens: int | None = None

    def __post_init__(self) -> None:
        require(self.backend in BACKENDS, "backend", self.backend, ", ".join(BACKENDS))
        require(self.dtype in DTYPES, "dtype", self.dtype, ", ".join(DTYPES))
        for name, top in (("max_batch_size", 4096), ("max_seq_len", 1 << 20), ("max_num_tokens", 1 << 30)):
            value = getattr(self, name)
            optional = value is None and name != "max_batch_size"
            require(optional or (is_integer(value) and 1 <= value <= top), name, value, f"an integer in 1..{top}")

    def resolved(self, max_position_embeddings: int, checkpoint_dtype: str) -> BuildConfig:
        """The same with every default filled in for one checkpoint.

        Raises ConfigError if ``max_seq_len`` is beyond the model's limit or ``max_num_tokens`` below ``max_seq_len``.
        """
        seq = self.max_seq_len if self.max_seq_len is not None else min(max_position_embeddings, DEFAULT_MAX_SEQ_LEN)
        require(
            seq <= max_position_embeddings, "max_seq_len", seq, f"at most the model's limit {max_position_embeddings}"
        )
        tokens = self.max_num_tokens if self.max_num_tokens is not None else self.max_batch_size * seq
        require(tokens >= seq, "max_num_tokens", tokens, f"at least max_seq_len, {seq}")
        dtype = checkpoint_dtype if self.dtype == "auto" else self.dtype
        return BuildConfig(self.backend, dtype, self.max_batch_size, seq, tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored under ``build_config`` in an engine directory."""
        return asdict(self)
