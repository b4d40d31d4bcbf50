"""A checkpoint's ``config.json`` -> ModelConfig: every value is read, none is assumed, all problems are collected.

Of ``generation_config.json`` only the ids that end an answer are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from d3llm_trt.build.rope_settings import with_plain_rope
from d3llm_trt.model.config import Family, ModelConfig
from d3llm_trt.settings import is_integer, is_number

GIVE_CHECKPOINT = "expected a Hugging Face checkpoint directory"
CONFIG_FILE, GENERATION_CONFIG_FILE = "config.json", "generation_config.json"
ARCHITECTURES: dict[str, Family] = {"LLaDAModelLM": "llada", "DreamModel": "dream"}
MAX_SIZE, MAX_LAYERS = 1 << 24, 1000
ABSENT = object()

# A key's allowed values. ABSENT stands among them where leaving the key out means the same as the others.
_EVERYWHERE: dict[str, tuple[Any, ...]] = {
    "quantization_config": (ABSENT, None),
    "partial_rotary_factor": (ABSENT, None, 1.0, 1),
}
_FIXED: dict[Family, dict[str, tuple[Any, ...]]] = {
    "llada": {
        "block_type": ("llama",),
        "layer_norm_type": ("rms",),
        "activation_type": ("silu",),
        "rope": (True,),
        "rope_full_precision": (True,),
        "weight_tying": (False,),
        "include_bias": (False,),
        "include_qkv_bias": (False, ABSENT, None),
        "bias_for_layer_norm": (False, ABSENT, None),
        "layer_norm_with_affine": (True, ABSENT),
        "attention_layer_norm": (False, ABSENT, None),
        "input_emb_norm": (False, ABSENT, None),
        "scale_logits": (False, ABSENT, None),
        "alibi": (False, ABSENT, None),
        "multi_query_attention": (True, False, None, ABSENT),
        **_EVERYWHERE,
    },
    "dream": {
        "hidden_act": ("silu",),
        "tie_word_embeddings": (False,),
        "use_sliding_window": (False, ABSENT, None),
        "use_mrope": (False, ABSENT, None),
        **_EVERYWHERE,
    },
}


@dataclass
class ConfigReader:
    """Typed access to a configuration that notes each problem, with the name of the file, and goes on."""

    values: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)
    source: str = CONFIG_FILE

    def expect(self, key: str, condition: bool, allowed: str) -> bool:
        """Note a problem with the value of ``key`` unless ``condition`` holds."""
        if not condition:
            given = f"is {self.values[key]!r}" if key in self.values else "is missing"
            self.problems.append(f"{self.source}: {key} {given}; expected {allowed}")
        return condition

    def one_of(self, key: str, allowed: tuple[Any, ...]) -> None:
        """Check a key that must have one of a few values; True is not 1 here."""
        value = self.values.get(key, ABSENT)
        same = any(value is one or (type(value) is type(one) and value == one) for one in allowed)
        words = ["left out" if one is ABSENT else repr(one) for one in allowed]
        self.expect(key, same, " or ".join(words))

    def integer(self, key: str, top: int = MAX_SIZE, low: int = 1) -> int:
        """The integer under ``key``; ``low`` after a problem."""
        value = self.values.get(key)
        return int(value) if self.expect(key, is_integer(value) and low <= value <= top, f"{low}..{top}") else low  # type: ignore[operator, arg-type]

    def integer_or(self, key: str, default: Callable[[], int], top: int = MAX_SIZE) -> int:
        """The integer under ``key``, or ``default()`` where the key is there and null."""
        if key in self.values and self.values[key] is None:
            return default()
        return self.integer(key, top)

    def ids(self, key: str, last: int) -> tuple[int, ...]:
        """One id or the different ids of a list under ``key``; none where it is left out, null, or after a problem."""
        value = self.values.get(key)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        sound = all(is_integer(token_id) and 0 <= token_id <= last for token_id in listed)
        self.expect(key, sound and value != [], f"0..{last}, or a list of such ids")
        return tuple(dict.fromkeys(listed)) if sound else ()

    def number(self, key: str, low: float, top: float) -> float:
        """The number under ``key``, between the bounds; ``top`` after a problem."""
        value = self.values.get(key)
        allowed = is_number(value) and low < value < top  # type: ignore[operator]
        return float(value) if self.expect(key, allowed, f"a number between {low} and {top}") else top  # type: ignore[arg-type]


def model_config(
    values: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> tuple[ModelConfig | None, list[str]]:
    """The hyper-parameters, and what is wrong with them; no hyper-parameters where something is.

    Args:
        values: the content of ``config.json``.
        generation: that of ``generation_config.json``, for more ids that end an answer.
    """
    reader = ConfigReader(*with_plain_rope(values))
    generated = ConfigReader(generation or {}, reader.problems, GENERATION_CONFIG_FILE)
    architectures = values.get("architectures")
    known = isinstance(architectures, list) and len(architectures) == 1 and architectures[0] in list(ARCHITECTURES)
    if not reader.expect("architectures", known, " or ".join(f"['{name}']" for name in ARCHITECTURES)):
        return None, reader.problems
    assert isinstance(architectures, list)
    family = ARCHITECTURES[architectures[0]]
    for key, allowed in _FIXED[family].items():
        reader.one_of(key, allowed)
    config = _llada(reader, generated) if family == "llada" else _dream(reader, generated)
    return (None, reader.problems) if reader.problems else (config, [])


def _llada(reader: ConfigReader, generated: ConfigReader) -> ModelConfig:
    hidden, heads = reader.integer("d_model"), reader.integer("n_heads")
    multi_query = reader.values.get("multi_query_attention") is True
    kv_heads = reader.integer_or("n_kv_heads", lambda: 1 if multi_query else heads)
    reader.expect("n_kv_heads", not multi_query or kv_heads == 1, "1 or null with multi_query_attention")
    rows = reader.integer("vocab_size")
    table_rows = reader.integer_or("embedding_size", lambda: rows)
    reader.expect("embedding_size", table_rows >= rows, f"at least vocab_size, {rows}")
    return ModelConfig(
        family="llada",
        vocab_size=table_rows,
        hidden_size=hidden,
        intermediate_size=reader.integer_or("mlp_hidden_size", lambda: hidden * reader.integer("mlp_ratio", 64)),
        num_layers=reader.integer("n_layers", MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_head_dim(reader, hidden, heads, kv_heads, ("d_model", "n_heads", "n_kv_heads")),
        max_position_embeddings=reader.integer("max_sequence_length"),
        **_common(reader, generated, table_rows),
    )


def _dream(reader: ConfigReader, generated: ConfigReader) -> ModelConfig:
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    kv_heads = reader.integer("num_key_value_heads")
    rows = reader.integer("vocab_size")
    names = ("hidden_size", "num_attention_heads", "num_key_value_heads")
    head_dim = _head_dim(reader, hidden, heads, kv_heads, names)
    types = reader.values.get("layer_types")
    full = types is None or (isinstance(types, list) and all(kind == "full_attention" for kind in types))
    reader.expect("layer_types", full, "left out or 'full_attention' throughout")
    reader.expect("head_dim", reader.values.get("head_dim") in (None, head_dim), f"left out or {head_dim}")
    return ModelConfig(
        family="dream",
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=reader.integer("num_hidden_layers", MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=reader.integer("max_position_embeddings"),
        **_common(reader, generated, rows),
    )


def _head_dim(reader: ConfigReader, hidden: int, heads: int, kv_heads: int, names: tuple[str, str, str]) -> int:
    if not reader.problems:
        # Half-split rotation pairs up the values of a head.
        reader.expect(names[0], hidden % (2 * heads) == 0, f"a multiple of twice {names[1]}, {2 * heads}")
        reader.expect(names[2], heads % kv_heads == 0, f"a divisor of {names[1]}, {heads}")
    return max(1, hidden // heads)


def _common(reader: ConfigReader, generated: ConfigReader, rows: int) -> dict[str, Any]:
    """What both families call by the same name."""
    last = max(0, rows - 1)
    ends = _end_token_ids(reader, generated, last)
    mask, pad = (reader.integer(name, last, 0) for name in ("mask_token_id", "pad_token_id"))
    if not reader.problems:
        reader.expect("mask_token_id", mask not in (*ends, pad), "another id than pad_token_id and those that end")
    return {
        "rms_norm_eps": reader.number("rms_norm_eps", 0.0, 1.0),
        "rope_theta": reader.number("rope_theta", 1.0, 1e12),
        "mask_token_id": mask,
        "eos_token_id": ends[0] if ends else 0,
        "pad_token_id": pad,
        "end_token_ids": ends,
    }


def _end_token_ids(reader: ConfigReader, generated: ConfigReader, last: int) -> tuple[int, ...]:
    """Every id that ends an answer, those of ``config.json`` first."""
    problems = len(reader.problems)
    ends = tuple(dict.fromkeys(reader.ids("eos_token_id", last) + generated.ids("eos_token_id", last)))
    if len(reader.problems) == problems:
        reader.expect("eos_token_id", bool(ends), f"0..{last}, or a list of such ids, here or in {generated.source}")
    return ends
