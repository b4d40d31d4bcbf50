"""Whether a checkpoint's own chat template is the published one: it is never run, so another one is worth a warning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d3llm_trt.model.config import Family
from d3llm_trt.tokenizer_files import TOKENIZER_CONFIG_FILE

TEMPLATE_FILE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
# What the published templates hold, by which another one is noticed.
TEMPLATE_PARTS: dict[Family, tuple[str, ...]] = {
    "llada": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "trim"),
    "dream": ("<|im_start|>", "<|im_end|>", "system", "You are a helpful assistant."),
}


def warn_of_other_template(checkpoint_dir: Path, family: Family, tokenizer_config: Mapping[str, Any]) -> None:
    """Warn once if a template of the checkpoint does not look like the family's published one.

    As in transformers, templates in files hide those in ``tokenizer_config.json``.
    """
    templates = _in_files(checkpoint_dir) or _in_config(tokenizer_config.get("chat_template"))
    other = [where for where, text in templates.items() if not all(part in text for part in TEMPLATE_PARTS[family])]
    if other:
        warnings.warn(
            f"{checkpoint_dir}: its chat_template is not the published one ({other[0]}); "
            f"chats use {family}'s built-in one",
            stacklevel=3,
        )


def _in_files(checkpoint_dir: Path) -> dict[str, str]:
    paths = [checkpoint_dir / TEMPLATE_FILE, *sorted((checkpoint_dir / MORE_TEMPLATES).glob("*.jinja"))]
    return {str(path.relative_to(checkpoint_dir)): _read(path) for path in paths if path.exists() or path.is_symlink()}


def _read(path: Path) -> str:
    """The text, or an empty one where it cannot be read, which is then not the published one either."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _in_config(value: object) -> dict[str, str]:
    """One template, or named ones in a list or an object."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, Mapping)]
        value = {str(entry.get("name")): entry.get("template") for entry in entries}
    named = value if isinstance(value, Mapping) else {"": value}
    templates = {name: text for name, text in named.items() if isinstance(text, str)}
    return {f"{TOKENIZER_CONFIG_FILE} {name}".rstrip(): text for name, text in templates.items()}
