"""The ``cache`` commands: the engines that were built for checkpoints, listed and removed."""

from __future__ import annotations

import sys
from typing import Any

import click

from d3llm_trt.build.cache_entries import CacheEntry, cache_entries, remove_dead_builds, remove_entry
from d3llm_trt.capacity import shown_bytes
from d3llm_trt.cli.options import SOME_FAILED
from d3llm_trt.cli.streams import is_terminal, write_json, write_line
from d3llm_trt.errors import ConfigError
from d3llm_trt.files import cache_directory


@click.group()
def cache() -> None:
    """Engines that generate, chat, bench and LLM have built for checkpoints, in $D3LLM_TRT_CACHE."""


@cache.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_command(as_json: bool) -> None:
    """List the engines: what each was built from and for, and how large it is."""
    directory, entries = cache_directory(), cache_entries()
    size = sum(entry.size for entry in entries)
    if as_json:
        write_json({"directory": str(directory), "size": size, "engines": [entry_facts(entry) for entry in entries]})
        return
    for entry in entries:
        write_line(_entry_line(entry))
    write_line(f"{_counted(entries)} in {directory}, {shown_bytes(size)}")


@cache.command()
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def clear(yes: bool, as_json: bool) -> int:
    """Remove the engines. They are built again when they are needed; a process that uses one goes on."""
    entries = cache_entries()
    size = shown_bytes(sum(entry.size for entry in entries))
    if entries and not yes:
        if not is_terminal(sys.stdin):
            raise ConfigError(f"{_counted(entries)} would be removed, and nobody can be asked; give --yes")
        if not click.confirm(f"Remove {_counted(entries)} in {cache_directory()}, {size}?", err=True):
            return SOME_FAILED
    removed = [entry for entry in entries if remove_entry(entry)]
    remove_dead_builds()
    facts = {"removed": [str(entry.path) for entry in removed], "size": sum(entry.size for entry in removed)}
    left = len(entries) - len(removed)
    if as_json:
        write_json(facts)
        return SOME_FAILED if left else 0
    write_line(f"removed {_counted(removed)}, {shown_bytes(sum(entry.size for entry in removed))}")
    if left:
        write_line(f"{_counted(entries[:left])} left, which other processes are building")
    return SOME_FAILED if left else 0


def _counted(entries: list[CacheEntry]) -> str:
    return f"{len(entries)} engine{'' if len(entries) == 1 else 's'}"


def entry_facts(entry: CacheEntry) -> dict[str, Any]:
    """An engine in plain values; those of its manifest are None where that cannot be read."""
    manifest = entry.manifest
    build = None if manifest is None else manifest.build_config
    return {
        "path": str(entry.path),
        "source": entry.source,
        "size": entry.size,
        "built": entry.built.isoformat(timespec="seconds"),
        "family": None if manifest is None else manifest.model_config.family,
        "backend": None if build is None else build.backend,
        "dtype": None if build is None else build.dtype,
        "max_batch_size": None if build is None else build.max_batch_size,
        "max_seq_len": None if build is None else build.max_seq_len,
        "quantization": None if build is None else build.quantization,
    }


def _entry_line(entry: CacheEntry) -> str:
    facts = entry_facts(entry)
    what = "cannot be read by this version"
    if entry.manifest is not None:
        precision = facts["dtype"] + (f" with {facts['quantization']}" if facts["quantization"] else "")
        what = f"{facts['family']}, {facts['backend']}, {precision}, {facts['max_batch_size']} x {facts['max_seq_len']}"
    when, size = f"{entry.built.astimezone():%Y-%m-%d %H:%M}", shown_bytes(entry.size)
    return f"{entry.path.name[:12]}  {when}  {size:>9}  {what}  {entry.source or 'an unknown checkpoint'}"
