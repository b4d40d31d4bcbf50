"""The two tokenizer files of an engine directory: what the builder writes and the runtime reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from d3llm_trt.errors import ConfigError
from d3llm_trt.model.config import FAMILIES, Family
from d3llm_trt.settings import from_mapping, is_integer, require

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TokenizerConfig:
    """Everything about a tokenizer that is not in its ``tokenizer.json``, which knows plain text only.

    Args:
        family: decides the chat template.
        special_tokens: content and id of every added token; text never encodes to one of these ids.
        visible_tokens: those among them that stay in decoded text when special tokens are left out.
        bos_token_id: None if the checkpoint names no BOS token.
        eos_token_id: ends an answer.
        pad_token_id: fills a canvas.
        mask_token_id: a position without a token yet.
        format_version: of the two files.
    """

    family: Family
    special_tokens: dict[str, int]
    visible_tokens: list[str]
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int
    mask_token_id: int
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in ``tokenizer_config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenizerConfig:
        """Inverse of :meth:`to_dict`. Raises ConfigError on another format version or a wrong key or value."""
        version = values.get("format_version")
        require(version == FORMAT_VERSION, "format_version", version, str(FORMAT_VERSION))
        config = from_mapping(cls, values, "tokenizer config")
        require(config.family in FAMILIES, "family", config.family, ", ".join(FAMILIES))
        special = config.special_tokens
        if not isinstance(special, dict) or not all(is_integer(token_id) for token_id in special.values()):
            raise ConfigError("special_tokens is not a mapping of texts to ids")
        return config
