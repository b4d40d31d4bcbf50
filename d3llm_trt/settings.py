"""Settings read strictly: from mappings, from YAML and JSON files, value by value."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from d3llm_trt.errors import ConfigError

Config = TypeVar("Config")


def require(condition: bool, name: str, value: object, allowed: str, error: type[Exception] = ConfigError) -> None:
    """Raise ``error`` naming the setting, its value and what is allowed, unless ``condition`` holds."""
    if not condition:
        raise error(f"{name} is {value!r}; allowed: {allowed}")


def require_path(name: str, value: object) -> None:
    """Raise ConfigError unless ``value`` can name a file or folder: a text or a path, and not empty."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    require(isinstance(text, str) and text != "" and "\0" not in text, name, value, "a path, as str or Path")


def is_integer(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether ``value`` is an int from ``low`` to ``high``; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite int or float; a bool is not."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def make_plain(settings: object) -> None:
    """Replace numbers and arrays of numpy or torch by Python's own, in a dataclass that is being made."""
    for item in fields(settings):  # type: ignore[arg-type]
        object.__setattr__(settings, item.name, plain(getattr(settings, item.name)))


def from_mapping(cls: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Build the dataclass ``cls`` from ``values``. Raises ConfigError on an unknown key, and where one is missing."""
    items = fields(cls)  # type: ignore[arg-type]
    known = sorted(item.name for item in items)
    require(isinstance(values, Mapping), source, values, f"a mapping with keys of {known}")
    if unknown := sorted(str(key) for key in values if key not in known):
        raise ConfigError(f"{source}: unknown key {unknown[0]!r}; allowed: {', '.join(known)}")
    needed = (item.name for item in items if item.default is MISSING and item.default_factory is MISSING)
    if missing := [name for name in needed if name not in values]:
        raise ConfigError(f"{source}: {missing[0]} is missing; give it a value")
    return cls(**values)


def as_config(cls: type[Config], value: object, name: str) -> Config:
    """``value`` itself, one made of a mapping, or the default one for None. Raises ConfigError on anything else."""
    if value is None:
        return cls()
    if isinstance(value, cls):
        return value
    require(isinstance(value, Mapping), name, value, f"a {cls.__name__}, a mapping of its settings, or None")
    return from_mapping(cls, value, name)  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """A number or array of numpy or torch as numbers or lists of Python, in lists too; anything else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    convert = getattr(value, "tolist", None)
    return convert() if callable(convert) else value


def read_settings_file(path: str | Path) -> Any:
    """The content of a ``.yaml``, ``.yml`` or ``.json`` file. Raises ConfigError if it cannot be read."""
    import yaml

    require_path("settings file", path)
    path = Path(path)
    suffix = path.suffix.lower()
    require(suffix in (".yaml", ".yml", ".json"), "settings file", str(path), "a .yaml, .yml or .json file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        return json.loads(text) if suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path}: cannot be read: {error}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        kind = "JSON" if suffix == ".json" else "YAML"
        raise ConfigError(f"settings file {path}: not valid {kind}: {error}") from error


def shortened(value: object) -> str:
    """``value`` as an error message shows it: its representation, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def has_surrogates(text: str) -> bool:
    """Whether ``text`` holds half of a character, which UTF-8 cannot express."""
    return any("\ud800" <= char <= "\udfff" for char in text)
