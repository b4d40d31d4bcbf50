"""A checkpoint's tokenizer files -> the two tokenizer files of an engine directory, without running remote code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from d3llm_trt.build.chat_templates import warn_of_other_template
from d3llm_trt.errors import CheckpointError
from d3llm_trt.lookalikes import absence, other_content, unreadable
from d3llm_trt.model.config import Family, ModelConfig
from d3llm_trt.settings import is_integer
from d3llm_trt.strict_json import read_object
from d3llm_trt.tokenizer_files import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, TokenizerConfig

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"
ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE = "added_tokens.json", "special_tokens_map.json"
SOURCE_FILES = (
    TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, VOCAB_FILE, MERGES_FILE, ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE
)  # fmt: skip
MASK_TOKENS: dict[Family, str] = {"llada": "<|mdm_mask|>", "dream": "<|mask|>"}
BOS_TOKENS: dict[Family, str] = {"llada": "<|startoftext|>", "dream": "<|beginoftext|>"}
MAX_DIGITS = 64  # model_max_length is published as 10**30
# These hold tokens in a list, or by name.
SPECIAL_LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")
COPY_AGAIN = "copy the tokenizer files from the published checkpoint again"
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class AddedToken:
    """A token that plain text never encodes to. Only ``special`` ones are left out of decoded text."""

    content: str
    token_id: int
    special: bool


def convert_tokenizer(checkpoint_dir: Path, config: ModelConfig, out_dir: Path) -> list[str]:
    """Write the engine's tokenizer files into ``out_dir``. Returns their names; none if there is no tokenizer.

    Raises CheckpointError if the tokenizer is incomplete, damaged, or does not belong to the model.
    """
    there = [checkpoint_dir / name for name in SOURCE_FILES if os.path.lexists(checkpoint_dir / name)]
    if not there:
        return []
    if lost := [path for path in there if not path.is_file()]:
        state = "not a regular file" if lost[0].exists() else absence(lost[0])
        raise CheckpointError(f"{lost[0]}: {state}; {COPY_AGAIN}")
    definition, source = _definition(checkpoint_dir, config.family)
    added = _added_tokens(checkpoint_dir, definition, source)
    _check_ids(definition["model"]["vocab"], added, config, source)
    plain = _plain_text_only(definition, {token.token_id for token in added.values()}, source)
    _check_works(plain, source)
    warn_of_other_template(checkpoint_dir, config.family, _read_optional(checkpoint_dir / TOKENIZER_CONFIG_FILE))
    special_tokens = {content: added[content].token_id for content in sorted(added, key=lambda c: added[c].token_id)}
    settings = TokenizerConfig(
        family=config.family,
        special_tokens=special_tokens,
        visible_tokens=[content for content in special_tokens if not added[content].special],
        bos_token_id=_bos_token_id(checkpoint_dir, config.family, special_tokens),
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        mask_token_id=config.mask_token_id,
    )
    _write_json(out_dir / TOKENIZER_FILE, plain)
    _write_json(out_dir / TOKENIZER_CONFIG_FILE, settings.to_dict())
    return [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE]


def _definition(checkpoint_dir: Path, family: Family) -> tuple[dict[str, Any], Path]:
    """The content of ``tokenizer.json``, read or made from its halves, and the file that holds the vocabulary."""
    path = checkpoint_dir / TOKENIZER_FILE
    if path.is_file():
        definition = _read_object(path)
        model = definition.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
            kind = model.get("type") if isinstance(model, dict) else None
            raise CheckpointError(f"{path}: model type is {kind!r}; allowed: BPE with a vocabulary; {COPY_AGAIN}")
        return definition, path
    if family != "dream":
        raise CheckpointError(f"{path}: missing, but other tokenizer files are there; {COPY_AGAIN}")
    for half in (VOCAB_FILE, MERGES_FILE):
        if not (checkpoint_dir / half).is_file():
            fix = f"a Dream tokenizer is {TOKENIZER_FILE}, or {VOCAB_FILE} and {MERGES_FILE}; {COPY_AGAIN}"
            raise CheckpointError(f"{checkpoint_dir / half}: missing; {fix}")
    vocab = checkpoint_dir / VOCAB_FILE
    return _qwen2_definition(_read_object(vocab), _read_merges(checkpoint_dir / MERGES_FILE)), vocab


def _qwen2_definition(vocab: dict[str, Any], merges: list[list[str]]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _read_merges(path: Path) -> list[list[str]]:
    # Only newlines end a merge: some characters inside merges count as line ends for str.splitlines.
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise CheckpointError(f"{path}: line {number} is {line!r}; allowed: two parts and one space; {COPY_AGAIN}")
        merges.append(parts)
    return merges


def _added_tokens(checkpoint_dir: Path, definition: dict[str, Any], source: Path) -> dict[str, AddedToken]:
    """Every added token by content, from all files that may name some. Raises CheckpointError if ids disagree.

    A token is special if one of the files says so, or gives it a role such as ``eos_token``.
    """
    roles = _special_contents(checkpoint_dir)
    added: dict[str, AddedToken] = {}
    ids: dict[int, str] = {}
    for path, token in _all_sources(checkpoint_dir, definition, source):
        known = added.setdefault(token.content, token)
        if known.token_id != token.token_id or ids.setdefault(token.token_id, token.content) != token.content:
            same = known.token_id == token.token_id
            other = repr(ids[token.token_id]) if same else f"{known.content!r} = {known.token_id}"
            raise CheckpointError(
                f"{path}: added token {token.content!r} = {token.token_id} disagrees with {other}; {COPY_AGAIN}"
            )
        special = known.special or token.special or token.content in roles
        added[token.content] = replace(known, special=special)
    return added


def _all_sources(checkpoint_dir: Path, definition: dict[str, Any], source: Path) -> Iterator[tuple[Path, AddedToken]]:
    for entry in _list(definition.get("added_tokens", []), "added_tokens", source):
        yield source, _parse(entry, entry.get("id") if isinstance(entry, dict) else None, source)
    settings_path, added_path = checkpoint_dir / TOKENIZER_CONFIG_FILE, checkpoint_dir / ADDED_TOKENS_FILE
    decoder = _read_optional(settings_path).get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise CheckpointError(f"{settings_path}: added_tokens_decoder is not an object; {COPY_AGAIN}")
    for key, entry in decoder.items():
        number = int(key) if key.isdecimal() and len(key) <= MAX_DIGITS else key
        yield settings_path, _parse(entry, number, settings_path)
    special = _special_contents(checkpoint_dir)
    for content, token_id in _read_optional(added_path).items():
        yield added_path, _parse({"content": content, "special": content in special}, token_id, added_path)
    vocab = definition["model"]["vocab"]
    for content in sorted(special.intersection(vocab)):
        yield source, _parse({"content": content, "special": True}, vocab[content], source)


def _parse(entry: object, token_id: object, path: Path) -> AddedToken:
    content = _content(entry)
    if not isinstance(entry, dict) or not content or not isinstance(token_id, int) or not is_integer(token_id):
        raise CheckpointError(
            f"{path}: added token {entry!r} has id {token_id!r}; allowed: a text and an integer id; {COPY_AGAIN}"
        )
    return AddedToken(content, token_id, bool(entry.get("special", False)))


def _special_contents(checkpoint_dir: Path) -> set[str]:
    """The texts that have a special role, such as ``eos_token``, by any of the two files that say so."""
    values: list[object] = []
    for name in (SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE):
        for key, value in _read_optional(checkpoint_dir / name).items():
            if key.endswith("_token"):
                values.append(value)
            elif key in SPECIAL_LISTS:
                values += value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
    return {content for content in map(_content, values) if content is not None}


def _content(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _bos_token_id(checkpoint_dir: Path, family: Family, special_tokens: Mapping[str, int]) -> int | None:
    content = _content(_read_optional(checkpoint_dir / TOKENIZER_CONFIG_FILE).get("bos_token")) or BOS_TOKENS[family]
    return special_tokens.get(content)


def _check_ids(vocab: dict[str, Any], added: dict[str, AddedToken], config: ModelConfig, source: Path) -> None:
    """Raise CheckpointError unless every id is a row of the model's embedding and no two tokens share one."""
    size = config.vocab_size
    contents = {token_id: content for content, token_id in vocab.items() if _is_row(token_id, size)}
    if len(contents) != len(vocab):
        raise CheckpointError(f"{source}: token ids repeat or are outside the model's 0..{size - 1}; {COPY_AGAIN}")
    for token in added.values():
        if not _is_row(token.token_id, size):
            where = f"allowed: 0..{size - 1}, the model's vocabulary"
            raise CheckpointError(
                f"{source}: added token {token.content!r} has id {token.token_id}; {where}; {COPY_AGAIN}"
            )
        other = contents.get(token.token_id, token.content)
        if other != token.content or vocab.get(token.content, token.token_id) != token.token_id:
            taken = f"id {token.token_id} of {other!r}" if other != token.content else f"id {vocab[token.content]}"
            raise CheckpointError(
                f"{source}: added token {token.content!r} = {token.token_id} collides with {taken}; {COPY_AGAIN}"
            )
    mask = added.get(MASK_TOKENS[config.family])
    if mask is not None and mask.token_id != config.mask_token_id:
        raise CheckpointError(
            f"{source}: {mask.content} has id {mask.token_id}, but config.json says mask_token_id "
            f"{config.mask_token_id}; allowed: the same id; correct config.json or {COPY_AGAIN}"
        )


def _is_row(token_id: object, size: int) -> bool:
    return isinstance(token_id, int) and not isinstance(token_id, bool) and 0 <= token_id < size


def _plain_text_only(definition: dict[str, Any], added_ids: set[int], source: Path) -> dict[str, Any]:
    """The definition without added tokens, and with nothing left that could yield one of their ids."""
    model = definition["model"]
    removed = {content for content, token_id in model["vocab"].items() if token_id in added_ids}
    model = {**model, "vocab": {c: i for c, i in model["vocab"].items() if c not in removed}}
    if removed:
        merges = _list(model.get("merges", []), "merges", source)
        model["merges"] = [merge for merge in merges if removed.isdisjoint(_with_result(merge, source))]
    if isinstance(unknown := model.get("unk_token"), str) and unknown in removed:
        model["unk_token"] = None
    return {
        **definition,
        "model": model,
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _with_result(merge: Any, source: Path) -> list[str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise CheckpointError(f"{source}: merge {merge!r}; allowed: two texts; {COPY_AGAIN}")
    return [*parts, "".join(parts)]


def _list(value: object, name: str, source: Path) -> list[Any]:
    if not isinstance(value, list):
        raise CheckpointError(f"{source}: {name} is {value!r}; allowed: a list; {COPY_AGAIN}")
    return value


def _check_works(definition: dict[str, Any], source: Path) -> None:
    """Load, encode and decode with it: parts that load may still panic when they run."""
    try:
        tokenizer = Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))
        tokenizer.encode("A word, \u00e9\n 7.", add_special_tokens=False)
        tokenizer.decode([])
        tokenizer.decode_batch([[token_id] for token_id in definition["model"]["vocab"].values()])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CheckpointError(f"{source}: not a valid tokenizer: {error}; {COPY_AGAIN}") from error


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_object(path) if path.is_file() else {}


def _read_object(path: Path) -> dict[str, Any]:
    return read_object(path, CheckpointError, COPY_AGAIN, max_digits=MAX_DIGITS)


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if (other := other_content(data, "merges")) is not None:
            raise CheckpointError(f"{path}: {other.cause}; {other.fix or COPY_AGAIN}")
        return data.decode("utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: {unreadable(path, error, COPY_AGAIN)}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; {COPY_AGAIN}") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
