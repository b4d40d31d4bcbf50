"""The manifest of an engine directory, its ``config.json``: what the builder writes and the runtime checks."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from d3llm_trt.config import EngineConfig
from d3llm_trt.errors import ConfigError, EngineError
from d3llm_trt.files import require_directory
from d3llm_trt.model.config import FAMILIES, ModelConfig
from d3llm_trt.progress import OnProgress
from d3llm_trt.settings import from_mapping, is_integer, is_number
from d3llm_trt.strict_json import read_object

FORMAT = "d3llm-trt-engine"
FORMAT_VERSION = 1
MANIFEST_FILE = "config.json"
WEIGHTS_FILE, PLAN_FILE = "rank0.safetensors", "rank0.engine"
REBUILD = "build the engine again with `d3llm-trt build`"
_CHUNK = 16 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Check = Callable[[ModelConfig, EngineConfig], None]  # raises what speaks against an engine of these


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 of one file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class PluginFacts:
    """Which build of the plugin library a plan needs."""

    version: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything an engine directory says about itself.

    Args:
        model_config: hyper-parameters of the network.
        build_config: what it was built for.
        backend_version: the version of the library that compiled it.
        package_version: the version of d3llm_trt that built it.
        compute_capabilities: the GPUs it was compiled for, as in "9.0"; empty where any will do.
        plugin: None if the engine needs no plugin library.
        checkpoint_fingerprint: a digest of the checkpoint it was built from.
        files: every file of the directory but the manifest.
        quantization_errors: for each linear layer whose packed weight is quantized, the relative error of its output
            while the scales were measured.
        calibration_prompts: size and checksum of the file of prompts on which they were measured; None if those were
            generated, or nothing is quantized.
        format_version: the version of the directory's form.
    """

    model_config: ModelConfig
    build_config: EngineConfig
    backend_version: str
    package_version: str
    checkpoint_fingerprint: str
    files: Mapping[str, FileFacts]
    compute_capabilities: tuple[str, ...] = ()
    plugin: PluginFacts | None = None
    quantization_errors: Mapping[str, float] = field(default_factory=dict)
    calibration_prompts: FileFacts | None = None
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def backend(self) -> str:
        """How the network was compiled."""
        return self.build_config.backend

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in ``config.json``; the last one is a checksum of all others."""
        values: dict[str, Any] = {
            "format": FORMAT,
            "format_version": self.format_version,
            "package_version": self.package_version,
            "backend": self.backend,
            "backend_version": self.backend_version,
            "compute_capabilities": list(self.compute_capabilities),
            "plugin": None if self.plugin is None else vars(self.plugin),
            "checkpoint_fingerprint": self.checkpoint_fingerprint,
            "pretrained_config": self.model_config.to_dict(),
            "build_config": self.build_config.to_dict(),
            "files": {name: vars(facts) for name, facts in sorted(self.files.items())},
        }
        if self.quantization_errors:
            values["quantization_errors"] = dict(self.quantization_errors)
        if self.calibration_prompts is not None:
            values["calibration_prompts"] = vars(self.calibration_prompts)
        return {**values, "checksum": _checksum(values)}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``config.json``, after which ``directory`` loads."""
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (directory / MANIFEST_FILE).write_text(text, encoding="utf-8")


def is_engine(directory: Path) -> bool:
    """Whether ``directory`` is meant as an engine, sound or not, rather than as a checkpoint."""
    files = any((directory / name).exists() for name in (WEIGHTS_FILE, PLAN_FILE))
    return files or "pretrained_config" in glance(directory)


def glance(directory: Path) -> dict[str, Any]:
    """The values in ``config.json`` as they are, sound or not; none if it cannot be read as an object."""
    try:
        values = json.loads((directory / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def load_manifest(directory: str | Path) -> Manifest:
    """The manifest of an engine directory; its files are not read, see :func:`verify_files`.

    Raises EngineError if the directory is missing, foreign, of another format version, or its manifest is damaged.
    """
    directory = Path(directory)
    path = directory / MANIFEST_FILE
    require_directory(directory, EngineError, "expected an engine directory written by `d3llm-trt build`")
    if not path.exists():
        raise EngineError(f"{directory}: has no {MANIFEST_FILE}, so it is not an engine directory; {REBUILD}")
    values = read_object(path, EngineError, REBUILD)
    _check_format(path, values)
    try:
        return _from_values(values)
    except ConfigError as error:
        raise EngineError(f"{path}: {error}; {REBUILD}") from error


def _check_format(path: Path, values: dict[str, Any]) -> None:
    if values.get("format") != FORMAT:
        if "architectures" in values:
            fix = f"build it first: d3llm-trt build {path.parent} --output ENGINE"
            raise EngineError(f"{path.parent}: a Hugging Face checkpoint, not an engine; {fix}")
        raise EngineError(f"{path}: format is {values.get('format')!r}; expected {FORMAT!r}; {REBUILD}")
    version = values.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        newer = is_integer(version) and version > FORMAT_VERSION  # type: ignore[operator]
        fix = f"upgrade d3llm-trt, or {REBUILD}" if newer else REBUILD
        raise EngineError(f"{path}: format version is {version!r}; this d3llm-trt reads {FORMAT_VERSION}; {fix}")


def _from_values(values: dict[str, Any]) -> Manifest:
    """The manifest that ``Manifest.to_dict`` stored as ``values``. Raises ConfigError."""
    expected = {
        "format": str, "format_version": int, "package_version": str, "backend": str, "backend_version": str,
        "compute_capabilities": list, "plugin": (dict, type(None)), "checkpoint_fingerprint": str,
        "pretrained_config": dict, "build_config": dict, "files": dict, "checksum": str,
    }  # fmt: skip
    errors, prompts = values.get("quantization_errors", {}), values.get("calibration_prompts")
    if wrong := sorted(expected.keys() ^ values.keys() - {"quantization_errors", "calibration_prompts"}):
        raise ConfigError(f"missing or unknown keys {wrong}")
    for name, kind in expected.items():
        if not isinstance(values[name], kind):  # type: ignore[arg-type]
            raise ConfigError(f"{name} is {values[name]!r}, which is of the wrong type")
    if values["checksum"] != _checksum({name: value for name, value in values.items() if name != "checksum"}):
        raise ConfigError("its content does not match its checksum, so it was changed after the build")
    if not isinstance(errors, dict) or not all(is_number(error) for error in errors.values()):
        raise ConfigError(f"quantization_errors is {errors!r}; expected numbers by layer")
    build_config = from_mapping(EngineConfig, values["build_config"], "build_config")
    if build_config.backend != values["backend"]:
        raise ConfigError(f"backend is {values['backend']!r}, but {build_config.backend!r} in build_config")
    return Manifest(
        model_config=_model_config(values["pretrained_config"]),
        build_config=build_config,
        backend_version=values["backend_version"],
        package_version=values["package_version"],
        checkpoint_fingerprint=values["checkpoint_fingerprint"],
        files={name: _file_facts(name, facts) for name, facts in values["files"].items()},
        compute_capabilities=tuple(map(str, values["compute_capabilities"])),
        plugin=None if values["plugin"] is None else from_mapping(PluginFacts, values["plugin"], "plugin"),
        quantization_errors=errors,
        calibration_prompts=None if prompts is None else _file_facts("calibration_prompts", prompts),
    )


def _model_config(values: dict[str, Any]) -> ModelConfig:
    ends = values.get("end_token_ids", [])
    if not isinstance(ends, list) or not all(map(is_integer, ends)):
        raise ConfigError(f"pretrained_config: end_token_ids is {ends!r}; expected a list of integers")
    config = ModelConfig.from_dict(values)
    if config.family not in FAMILIES:
        raise ConfigError(f"family is {config.family!r}; allowed: {', '.join(FAMILIES)}")
    checks = {"int": is_integer, "float": is_number}
    for item in fields(ModelConfig):
        if (check := checks.get(str(item.type))) and not check(values[item.name]):
            raise ConfigError(f"pretrained_config: {item.name} is {values[item.name]!r}; expected {item.type}")
    return config


def _file_facts(name: str, facts: Any) -> FileFacts:
    if not _FILE_NAME.fullmatch(name) or name == MANIFEST_FILE:
        raise ConfigError(f"files: the name {name!r} is not a plain file name")
    if not isinstance(facts, dict) or facts.keys() != {"sha256", "size"}:
        raise ConfigError(f"files: {name} is {facts!r}; expected a sha256 and a size")
    if not isinstance(facts["sha256"], str) or not _SHA256.fullmatch(facts["sha256"]):
        raise ConfigError(f"files: sha256 of {name} is {facts['sha256']!r}; expected 64 hexadecimal digits")
    if not is_integer(facts["size"], 0):
        raise ConfigError(f"files: size of {name} is {facts['size']!r}; expected a number of bytes")
    return FileFacts(facts["sha256"], facts["size"])


def _checksum(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode("ascii")).hexdigest()


def file_facts(path: Path, advance: Callable[[int], None] | None = None) -> FileFacts:
    """Size and checksum of a file, read in pieces; ``advance`` gets the size of each piece."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if advance is not None:
                advance(len(chunk))
    return FileFacts(digest.hexdigest(), size)


def verify_files(directory: str | Path, manifest: Manifest, progress: OnProgress | None = None) -> None:
    """Compare every file with the manifest: present, of the right size, the right SHA-256.

    ``progress`` gets ("verify", bytes read, bytes in all). Raises EngineError listing every file that is wrong.
    """
    total, done = sum(facts.size for facts in manifest.files.values()), 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress("verify", done, total)

    problems = (_file_problem(Path(directory) / name, facts, advance) for name, facts in manifest.files.items())
    if text := "; ".join(problem for problem in problems if problem is not None):
        raise EngineError(f"{directory}: damaged engine: {text}; {REBUILD}")


def _file_problem(path: Path, expected: FileFacts, advance: Callable[[int], None]) -> str | None:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{path.name} is not a regular file"
        if status.st_size != expected.size:
            return f"{path.name} has {status.st_size} bytes, expected {expected.size}"
        actual = file_facts(path, advance)
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None if actual == expected else f"{path.name} has SHA-256 {actual.sha256}, expected {expected.sha256}"
