"""A complete Triton model repository for an engine directory."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d3llm_trt.errors import ConfigError
from d3llm_trt.manifest import MANIFEST_FILE, load_manifest, verify_files
from d3llm_trt.serving.triton.fields import INPUTS, OUTPUTS, Field
from d3llm_trt.settings import is_integer, require
from d3llm_trt.workspaces import move_into_place, require_writable, workspace
from d3llm_trt.write_errors import naming_causes

VERSION, ENGINE_DIR = "1", "engine"
MODEL_NAME, CONFIG_NAME = "model.py", "config.pbtxt"
# The last one is Python's.
WRITTEN = {CONFIG_NAME, VERSION, *(f"{VERSION}/{name}" for name in (MODEL_NAME, ENGINE_DIR, "__pycache__"))}
ELSEWHERE = "choose another name or repository"
MODEL_FILE = '''"""A d3LLM engine behind Triton's Python backend."""

from d3llm_trt.serving.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class RepositoryOptions:
    """How the model is served.

    Args:
        name: the name of the model in Triton.
        instances: engines per device; each decodes its own batch.
        gpus: devices with instances each, as in 0,1.
        max_queue_size: requests that may wait per instance; more are refused.
        exit_on_crash: end the server when the model's process dies, since its clients would wait for ever.
    """

    name: str = "d3llm"
    instances: int = 1
    gpus: tuple[int, ...] = ()
    max_queue_size: int = 256
    exit_on_crash: bool = True

    def __post_init__(self) -> None:
        sound = isinstance(self.name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name) is not None
        require(sound, "name", self.name, "1 to 64 letters, digits, - and _")
        require(is_integer(self.instances, 1), "instances", self.instances, "an integer of 1 or more")
        sound = all(is_integer(gpu, 0) for gpu in self.gpus) and len(set(self.gpus)) == len(self.gpus)
        require(sound, "gpus", self.gpus, "different device numbers")
        require(is_integer(self.max_queue_size, 0), "max_queue_size", self.max_queue_size, "an integer of 0 or more")
        require(isinstance(self.exit_on_crash, bool), "exit_on_crash", self.exit_on_crash, "True or False")


def write_repository(
    engine: str | Path, output: str | Path, options: RepositoryOptions | None = None, *, overwrite: bool = False
) -> Path:
    """Write the model into the repository ``output`` and return the model's directory.

    The engine's files are linked into it where the file system can, copied elsewhere, so the repository can be moved.
    ``overwrite`` replaces a model of this name that was written here, at once; never anything else.
    Raises EngineError if the engine is not sound, ConfigError if the model's directory is taken or cannot be written.
    """
    engine, output, options = Path(engine), Path(output), options or RepositoryOptions()
    manifest = load_manifest(engine)
    if manifest.backend != "torch" and not options.gpus:
        raise ConfigError(f"gpus is (), but a {manifest.backend} plan needs an NVIDIA GPU; name one, as in --gpus 0")
    model = output / options.name
    with naming_causes(model, ConfigError, ELSEWHERE):
        _check_target(model, overwrite)
        require_writable(output)
        verify_files(engine, manifest)
        with workspace(output) as path:
            target = path / VERSION / ENGINE_DIR
            target.mkdir(parents=True)
            for name in (*manifest.files, MANIFEST_FILE):
                _link_or_copy(engine / name, target / name)
            (path / VERSION / MODEL_NAME).write_text(MODEL_FILE, encoding="utf-8")
            (path / CONFIG_NAME).write_text(config_text(options), encoding="utf-8")
            move_into_place(path, model, overwrite)
    return model


def _check_target(model: Path, overwrite: bool) -> None:
    """Raise ConfigError unless a model may be put at ``model``."""
    if not os.path.lexists(model):
        return
    if not overwrite:
        fix = f"pass overwrite=True (--overwrite), or {ELSEWHERE}"
        raise ConfigError(f"{model}: there is a model already; {fix}")
    names = {str(path.relative_to(model)) for folder in (model, model / VERSION) for path in folder.glob("*")}
    if not (model / VERSION / MODEL_NAME).is_file() or model.is_symlink():
        raise ConfigError(f"{model}: not a model that was written here; move it away, or {ELSEWHERE}")
    if foreign := sorted(names - WRITTEN):
        raise ConfigError(f"{model}: {foreign[0]} was not written here; move it away before overwriting")


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def config_text(options: RepositoryOptions) -> str:
    """The model's ``config.pbtxt``."""
    group = f"count: {options.instances} kind: KIND_GPU gpus: {list(options.gpus)}"
    if not options.gpus:
        group = f"count: {options.instances} kind: KIND_CPU"
    return "\n".join(
        [
            f'name: "{options.name}"',
            'backend: "python"',
            "max_batch_size: 0",
            "model_transaction_policy { decoupled: true }",
            *_tensor_lines("input", INPUTS, " optional: true"),
            *_tensor_lines("output", OUTPUTS, ""),
            f"instance_group [ {{ {group} }} ]",
            _parameter("engine_dir", ENGINE_DIR),
            _parameter("max_queue_size", str(options.max_queue_size)),
            _parameter("exit_on_crash", str(options.exit_on_crash).lower()),
            "",
        ]
    )


def _tensor_lines(kind: str, items: Sequence[Field], extra: str) -> list[str]:
    def line(item: Field) -> str:
        return f'  {{ name: "{item.name}" data_type: TYPE_{item.kind} dims: [ {-1 if item.many else 1} ]{extra} }}'

    return [f"{kind} [", ",\n".join(map(line, items)), "]"]


def _parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
