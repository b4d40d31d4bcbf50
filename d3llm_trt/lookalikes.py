"""What a file or folder is where another was expected, and what helps then."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any, NamedTuple

from d3llm_trt.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin")
MERGE_ADAPTER = (
    "merge it into its base model first: peft's PeftModel.from_pretrained(base, adapter).merge_and_unload(), "
    "then save_pretrained(directory)"
)
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


class Lookalike(NamedTuple):
    """What is there, and what to do; None where the usual advice is right."""

    cause: str
    fix: str | None


def absence(path: Path) -> str:
    """Why there is no file at ``path``: it is missing, or it is a link to something that is."""
    if not path.is_symlink():
        return "missing"
    target = path.readlink()
    incomplete = ", so the download cache is incomplete" if "blobs" in target.parts else ""
    return f"a link to {target}, which is not there{incomplete}"


def unreadable(path: Path, error: OSError, fix: str) -> str:
    """Why the file at ``path`` cannot be read, and what helps: ``fix``, unless another advice is better."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"{absence(path)}; {fix}"
    if isinstance(error, PermissionError):
        fix = "change its permissions, or run as a user who may read it"
    return f"cannot be read: {error.strerror or error}; {fix}"


def other_content(data: bytes, kind: str) -> Lookalike | None:
    """What ``data``, the whole file or its first bytes, is instead of UTF-8 text of this ``kind``; None if unknown."""
    start = data[:64].lstrip()
    if not start:
        return Lookalike(f"empty instead of {kind}", None)
    if data.startswith(codecs.BOM_UTF8):
        return Lookalike(f"a byte-order mark (BOM) is before the {kind}", "save the file as UTF-8 without one")
    if data.startswith(_WIDE_MARKS):
        return Lookalike("UTF-16 text with a byte-order mark (BOM)", "save the file as UTF-8 without one")
    if start.startswith(b"version https://git-lfs"):
        return Lookalike("a Git LFS pointer instead of the file", "run git lfs pull, or download the file again")
    if start.startswith(b"<"):
        return Lookalike(f"a web page or XML instead of {kind}", None)
    return None


def refuse_other_directory(path: Path) -> None:
    """Raise CheckpointError if ``path`` is an adapter, or a folder of the Hub's cache above its snapshots."""
    if names := [name for name in ADAPTER_FILES if (path / name).is_file()]:
        _refuse_adapter(path, names[0])
    snapshots = sorted(folder.name for folder in path.glob("snapshots/*") if folder.is_dir())
    if snapshots and not (path / "config.json").exists():
        fix = f"give one of its snapshots, such as {path / 'snapshots' / snapshots[-1]}"
        raise CheckpointError(f"{path}: a folder of the Hub's cache, not a checkpoint; {fix}")


def _refuse_adapter(path: Path, name: str) -> None:
    if (path / "model.safetensors").exists() or (path / "model.safetensors.index.json").exists():
        fix = f"remove {name} if it is merged into the weights already; otherwise {MERGE_ADAPTER}"
        raise CheckpointError(f"{path}: an adapter ({name}) lies beside the weights, and would be ignored; {fix}")
    settings = _adapter_settings(path / ADAPTER_CONFIG)
    kind, base = settings.get("peft_type") or "LoRA", settings.get("base_model_name_or_path")
    of = f" for {base}" if base else ""
    fix = "this kind cannot be merged, so give the base model" if "TUNING" in str(kind) else MERGE_ADAPTER
    raise CheckpointError(f"{path}: a {kind} adapter{of} ({name}), not a whole checkpoint; {fix}")


def _adapter_settings(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
