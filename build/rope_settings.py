"""Every spelling of plain RoPE in a ``config.json`` -> its theta; any other kind is refused by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

KEYS = ("rope_parameters", "rope_scaling")
TYPE_KEYS = ("rope_type", "type")
PLAIN = "default"
# With these values a setting changes nothing. The original length is only used by kinds that scale.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope_theta": (),
    "original_max_position_embeddings": (),
    "factor": (1,),
    "partial_rotary_factor": (1,),
    "attention_factor": (1,),
}


def with_plain_rope(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration with ``rope_theta`` at its top and no other word on RoPE, and what speaks against that.

    Older files have ``rope_theta`` and ``rope_scaling``; transformers 5 writes ``rope_parameters``, in which theta may
    stand a second time, or alone, or once per type of layer.
    """
    flat = {key: value for key, value in values.items() if key not in KEYS}
    thetas = [group["rope_theta"] for key in KEYS for group in _groups(values.get(key)) if _given(group, "rope_theta")]
    if flat.get("rope_theta") is None and thetas:
        flat["rope_theta"] = thetas[0]
    problems = []
    for key in KEYS:
        if (reason := _reason_against(values.get(key), flat.get("rope_theta"))) is not None:
            problems.append(f"config.json: {key} is {values[key]!r}; expected plain RoPE, {reason}")
    return flat, problems


def _given(group: Any, key: str) -> bool:
    return isinstance(group, Mapping) and group.get(key) is not None


def _groups(value: Any) -> Iterator[Any]:
    """The settings of all layers, or of each type of layer."""
    if isinstance(value, Mapping) and value and all(isinstance(part, Mapping) for part in value.values()):
        yield from value.values()
    elif value is not None:
        yield value


def _reason_against(value: Any, theta: Any) -> str | None:
    for group in _groups(value):
        if not isinstance(group, Mapping):
            return "null or an object"
        for key in TYPE_KEYS:
            if _given(group, key) and group[key] != PLAIN:
                return f"so {key} {PLAIN!r}, not {group[key]!r}"
        if _given(group, "rope_theta") and group["rope_theta"] != theta:
            return f"so rope_theta {theta!r} everywhere, not {group['rope_theta']!r}"
        for key, setting in group.items():
            if key not in TYPE_KEYS and setting is not None and not _changes_nothing(key, setting):
                return f"which has no {key} of {setting!r}"
    return None


def _changes_nothing(key: str, setting: Any) -> bool:
    allowed = _NEUTRAL.get(key)
    return allowed is not None and (not allowed or (not isinstance(setting, bool) and setting in allowed))
