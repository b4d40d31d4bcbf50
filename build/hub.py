"""Checkpoints by their name on the Hugging Face Hub: only the needed files, into the Hub's own cache, never code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d3llm_trt.build.chat_templates import MORE_TEMPLATES, TEMPLATE_FILE
from d3llm_trt.errors import CheckpointError, ConfigError
from d3llm_trt.lookalikes import ADAPTER_CONFIG, refuse_other_directory
from d3llm_trt.settings import require
from d3llm_trt.write_errors import cause_and_advice, is_about_writing

MAIN = "main"
INSTALL = "pip install 'd3llm-trt[hub]'"
LOG_IN = "log in with `hf auth login` or HF_TOKEN"
_NAME = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<revision>[^@\s]+))?")
_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class HubCheckpoint:
    """A repository of the Hub and a branch, tag or commit of it."""

    name: str
    revision: str

    def __str__(self) -> str:
        return self.name if self.revision == MAIN else f"{self.name}@{self.revision}"


def local_directory(model: str | Path, revision: str | None = None) -> Path:
    """The directory that ``model`` names: itself where it is there, else the files of a checkpoint of the Hub.

    Args:
        model: a directory, or ``org/name`` or ``org/name@revision`` on the Hub. A directory wins.
        revision: a branch, tag or commit of the Hub, where ``model`` names none.

    HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN mean what they mean to ``huggingface_hub``.
    Raises ConfigError on a revision of something else, CheckpointError if the files cannot be had.
    """
    source = _on_hub(model, revision)
    return Path(model) if source is None else _download(source)


def _on_hub(model: str | Path, revision: str | None) -> HubCheckpoint | None:
    """What ``model`` names on the Hub; None if it is meant as a directory."""
    named = revision is None or (isinstance(revision, str) and revision.strip() != "")
    require(named, "revision", revision, "None, or a branch, a tag or a commit")
    match = None if os.path.lexists(model) else _NAME.fullmatch(str(model))
    if match is None:
        if revision is not None:
            raise ConfigError(f"revision is {revision!r}, but {model} is no model of the Hub; leave the revision out")
        return None
    if revision is not None and match["revision"] not in (None, revision):
        raise ConfigError(f"revision is {revision!r}, but the model is {str(model)!r}; name one of the two")
    return HubCheckpoint(match["name"], match["revision"] or revision or MAIN)


def _download(source: HubCheckpoint) -> Path:
    """The snapshot of ``source`` in the cache, with every needed file; small files first, since they may say no."""
    from d3llm_trt.build.checkpoint import check_config
    from d3llm_trt.build.checkpoint_config import CONFIG_FILE, GENERATION_CONFIG_FILE
    from d3llm_trt.build.checkpoint_files import INDEX_FILE, SINGLE_FILE, read_index
    from d3llm_trt.build.tokenizer import SOURCE_FILES

    hub = _library(source)
    settings = _settings()
    templates = (TEMPLATE_FILE, f"{MORE_TEMPLATES}/*.jinja")
    small = [CONFIG_FILE, GENERATION_CONFIG_FILE, INDEX_FILE, ADAPTER_CONFIG, *SOURCE_FILES, *templates]
    with _explained(source, hub):
        wanted: dict[str, Any] = {"revision": source.revision, "allow_patterns": small, "tqdm_class": _no_bar(hub)}
        snapshot = Path(hub.snapshot_download(source.name, **wanted, **settings))
    refuse_other_directory(snapshot)
    check_config(snapshot)
    index = read_index(snapshot) if (snapshot / INDEX_FILE).exists() else None
    for name in [SINGLE_FILE] if index is None else sorted(set(index.values())):
        with _explained(source, hub, name):
            # On this thread, so that an interrupt ends it at once.
            hub.hf_hub_download(source.name, name, revision=snapshot.name, **settings)
    return snapshot


def _library(source: HubCheckpoint) -> Any:
    try:
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise CheckpointError(f"{source}: no such directory; to take it from the Hub: {INSTALL}") from error
    return huggingface_hub


def _no_bar(hub: Any) -> Any:
    """A progress bar that is never drawn; the library draws that of many files even where nobody sees it."""

    class NoBar(hub.utils.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    return NoBar


def _settings() -> dict[str, Any]:
    """What the environment says now; the library itself reads it when it is imported."""
    home, cache = os.environ.get("HF_HOME"), os.environ.get("HF_HUB_CACHE")
    return {
        "cache_dir": cache or (home and str(Path(home) / "hub")) or None,
        "endpoint": os.environ.get("HF_ENDPOINT") or None,
        "local_files_only": _is_offline(),
    }


def _is_offline() -> bool:
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


@contextmanager
def _explained(source: HubCheckpoint, hub: Any, file: str | None = None) -> Iterator[None]:
    """Turns whatever goes wrong while ``file``, or the small ones, are fetched into one CheckpointError."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{source}: {_explanation(source, hub.errors, error, file)}") from error


def _explanation(source: HubCheckpoint, errors: Any, error: Exception, file: str | None) -> str:
    local = isinstance(error, errors.LocalEntryNotFoundError)
    status = getattr(getattr(error.__cause__ if local else error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"its terms have to be accepted on its page on the Hub; accept them, and {LOG_IN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such directory, and no such model on the Hub; correct the name, or {LOG_IN} if it is private"
    if isinstance(error, errors.HFValidationError):
        return f"no such directory, and no name that the Hub can have: {error}; correct the name"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the Hub has no revision {source.revision!r} of it; name a branch, a tag or a commit"
    if isinstance(error, errors.EntryNotFoundError) and not local:
        return f"the Hub has no {file} of it; give a checkpoint in safetensors"
    if status is not None:
        return f"the Hub answered with status {status}; try again later, or {LOG_IN} if that is about permission"
    if isinstance(error, OSError) and is_about_writing(error):
        return f"the Hub's cache cannot be written: {cause_and_advice(error, 'set HF_HOME to another directory')}"
    what = file or "a whole snapshot"
    if _is_offline() or isinstance(error, errors.OfflineModeIsEnabled):
        return f"not a directory, and {what} is not in the Hub's cache; unset HF_HUB_OFFLINE to download it"
    reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return f"not a directory, and the Hub cannot be reached: {reason}; check the network, or copy the files here"
