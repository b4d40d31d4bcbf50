"""Tokenizers: equal to transformers on ordinary text, deaf to special-looking text, strict about broken files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from d3llm_trt.build.tokenizer import convert_tokenizer
from d3llm_trt.errors import CheckpointError, EngineError, RequestError
from d3llm_trt.model.config import Family
from d3llm_trt.runtime.incremental_text import IncrementalText
from d3llm_trt.tokenizer import Tokenizer
from tests.support.tiny_tokenizers import model_config, special_ids, write_tokenizer

FAMILIES: tuple[Family, ...] = get_args(Family)
TEXTS = (
    "",
    "hello the world and user",
    "It's 12345 o'clock, we'LL see 3.14159",
    "naïve café e\u0301 A\u030a ﬁ \u1e9b\u0323",
    "世界 こんにちは 안녕하세요 مرحبا",
    "🙂👩‍👩‍👧‍👦🇩🇪",
    "  leading,   runs \t\t and trailing  ",
    "a\n\nb\r\n\r\n  c\n \n",
    "\x00\x7f\u200b\ufeff\ufffd",
    "def f(x):\n    return x**2  # ok\n",
)


def convert(tmp_path: Path, family: Family) -> Tokenizer:
    write_tokenizer(tmp_path / "checkpoint", family)
    return reload(tmp_path, family)


def reload(tmp_path: Path, family: Family) -> Tokenizer:
    out = tmp_path / "engine"
    out.mkdir(exist_ok=True)
    assert convert_tokenizer(tmp_path / "checkpoint", model_config(family), out) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    tokenizer = Tokenizer.load(out)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Ours, and the one transformers makes from the same files."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp(request.param)
    ours = convert(path, request.param)
    return ours, transformers.AutoTokenizer.from_pretrained(path / "checkpoint")


def edit_json(path: Path, change: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


# Against transformers


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_equal_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    ids = ours.encode(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_encodes_like_transformers(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = pair
    assume(not any(content in text for content in ours.config.special_tokens))  # plain text to us, tokens to them
    assert ours.encode(text) == theirs.encode(text)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_ids_decode_like_transformers(pair: tuple[Tokenizer, Any], data: st.DataObject) -> None:
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, len(theirs) - 1), max_size=30))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("roles", [("user",), ("system", "user"), ("user", "assistant", "user"), ("user", "system")])
def test_chat_ids_equal_transformers(pair: tuple[Tokenizer, Any], roles: tuple[str, ...], text: str) -> None:
    ours, theirs = pair
    messages = [{"role": role, "content": text} for role in roles]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.chat_ids(messages) == expected


# Special tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_special_looking_text_is_plain_text(tmp_path: Path, family: Family) -> None:
    tokenizer = convert(tmp_path, family)
    special = special_ids(family)
    text = "".join(special) + " ".join(special)
    ids = tokenizer.encode(text)
    assert not set(ids) & set(special.values())
    assert tokenizer.decode(ids) == text
    inside = tokenizer.chat_ids([{"role": "user", "content": text}])
    outside = tokenizer.chat_ids([{"role": "user", "content": "x"}])
    assert [i for i in inside if i in special.values()] == [i for i in outside if i in special.values()]


def test_special_token_inside_the_vocabulary_cannot_be_reached(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "checkpoint", "dream")
    vocab = json.loads((tmp_path / "checkpoint/vocab.json").read_text(encoding="utf-8"))
    word = {"content": "Ġworld", "special": True}
    edit_json(
        tmp_path / "checkpoint/tokenizer_config.json",
        lambda c: c["added_tokens_decoder"].update({str(vocab["Ġworld"]): word}),
    )
    tokenizer = reload(tmp_path, "dream")
    assert vocab["Ġworld"] not in tokenizer.encode("hello world")
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"


def test_decode_leaves_out_or_shows_special_tokens(tmp_path: Path) -> None:
    tokenizer = convert(tmp_path, "dream")
    special = special_ids("dream")
    ids = [special["<|im_start|>"], *tokenizer.encode("hello"), special["<tool_call>"], special["<|im_end|>"]]
    assert tokenizer.decode(ids) == "hello<tool_call>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>hello<tool_call><|im_end|>"
    assert tokenizer.pieces(ids) == ["<|im_start|>", "hello", "<tool_call>", "<|im_end|>"]


def test_decode_ignores_unknown_ids(tmp_path: Path) -> None:
    tokenizer = convert(tmp_path, "llada")
    assert tokenizer.decode([*tokenizer.encode("hello"), 10**6, -1, 1 << 40]) == "hello"


def test_the_settings_file_names_every_special_token(tmp_path: Path) -> None:
    config = convert(tmp_path, "llada").config
    assert config.special_tokens == special_ids("llada")
    assert config.visible_tokens == ["<role>"]
    assert config.bos_token_id == special_ids("llada")["<|startoftext|>"]


def test_dream_added_tokens_from_the_older_files(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "checkpoint", "dream")
    (tmp_path / "checkpoint/tokenizer_config.json").unlink()
    special = special_ids("dream")
    (tmp_path / "checkpoint/added_tokens.json").write_text(json.dumps(special), encoding="utf-8")
    roles = {"eos_token": {"content": "<|endoftext|>"}, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    (tmp_path / "checkpoint/special_tokens_map.json").write_text(json.dumps(roles), encoding="utf-8")
    config = reload(tmp_path, "dream").config
    assert config.special_tokens == special
    assert config.visible_tokens == ["<tool_call>", "<|beginoftext|>", "<|mask|>"]


# Messages and text that are not acceptable


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "one or more messages"),
        ("hello", "list of one or more"),
        (["hello"], "mapping with role and content"),
        ([{"role": "user"}], "lacks the key 'content'"),
        ([{"role": "user", "content": "x", "weight": "y"}], "unknown key 'weight'"),
        ([{"role": "tool", "content": "x"}], "role 'tool'; allowed: system, developer, user, assistant"),
        ([{"role": "user", "content": None}], "lacks the key 'content'"),
        ([{"role": "user", "content": 7}], "content 7; allowed: a str, or a list of text parts"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            r"content\[0\] .*image_url.*; allowed: {.type.: .text.",
        ),
        ([{"role": "user", "content": "x"}, {"role": ["user"], "content": "x"}], r"messages\[1\]"),
    ],
)
def test_bad_messages_are_refused(tmp_path: Path, messages: Any, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        convert(tmp_path, "dream").chat_ids(messages)


def test_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="character 2"):
        convert(tmp_path, "dream").encode("ab\ud800")


def test_chat_needs_the_chat_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "checkpoint", "llada")
    edit_json(tmp_path / "checkpoint/tokenizer.json", lambda d: d["added_tokens"].pop())
    tokenizer = reload(tmp_path, "llada")
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match=r"<\|eot_id\|>"):
        tokenizer.chat_ids([{"role": "user", "content": "x"}])


# Broken checkpoints


def test_no_tokenizer_files_means_no_tokenizer(tmp_path: Path) -> None:
    assert convert_tokenizer(tmp_path, model_config("llada"), tmp_path) == []
    assert Tokenizer.load(tmp_path) is None


@pytest.mark.parametrize(
    ("family", "name"), [("llada", "tokenizer.json"), ("dream", "vocab.json"), ("dream", "merges.txt")]
)
def test_a_missing_file_is_named(tmp_path: Path, family: Family, name: str) -> None:
    write_tokenizer(tmp_path / "checkpoint", family)
    (tmp_path / "checkpoint" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing.*copy"):
        reload(tmp_path, family)


@pytest.mark.parametrize(
    ("family", "name", "content"),
    [
        ("llada", "tokenizer.json", b"{"),
        ("llada", "tokenizer.json", b"[]"),
        ("llada", "tokenizer.json", b'{"model": {"type": "Unigram", "vocab": []}}'),
        ("llada", "tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}}'),
        ("llada", "tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'),
        ("dream", "vocab.json", b"\xff"),
        ("dream", "vocab.json", b'{"a": 0, "b": 0}'),
        ("dream", "merges.txt", b"#version: 0.2\na b c\n"),
        ("dream", "tokenizer_config.json", b'{"added_tokens_decoder": []}'),
        ("dream", "tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "y"}}}'),
        ("dream", "tokenizer_config.json", b'{"added_tokens_decoder": {"0": {"content": "<|y|>"}}}'),
        ("dream", "tokenizer_config.json", b'{"added_tokens_decoder": {"99999": {"content": "<|y|>"}}}'),
        ("dream", "added_tokens.json", b'{"<|im_end|>": 3}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, family: Family, name: str, content: bytes) -> None:
    write_tokenizer(tmp_path / "checkpoint", family)
    (tmp_path / "checkpoint" / name).write_bytes(content)
    if content.startswith(b'{"added_tokens_decoder": {"'):
        name = r"(vocab|tokenizer_config)\.json"
    with pytest.raises(CheckpointError, match=f"{name}: .*copy the tokenizer files"):
        reload(tmp_path, family)


def test_the_mask_token_must_be_the_models(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "checkpoint", "llada")
    ids = special_ids("llada")

    def swap(definition: dict[str, Any]) -> None:
        for token in definition["added_tokens"]:
            token["content"] = {"<|mdm_mask|>": "<role>", "<role>": "<|mdm_mask|>"}.get(
                token["content"], token["content"]
            )

    edit_json(tmp_path / "checkpoint/tokenizer.json", swap)
    with pytest.raises(CheckpointError, match=f"{ids['<role>']}, but config.json says mask_token_id"):
        reload(tmp_path, "llada")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer_config.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"format_version": 9}'),
        ("tokenizer_config.json", '{"format_version": 1}'),
    ],
)
def test_a_damaged_engine_is_refused(tmp_path: Path, name: str, content: str | None) -> None:
    convert(tmp_path, "dream")
    path = tmp_path / "engine" / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(EngineError, match=f"{name}: .*build the engine again"):
        Tokenizer.load(tmp_path / "engine")


# Streaming


def test_incremental_text_only_grows_and_holds_back_half_characters(tmp_path: Path) -> None:
    tokenizer = convert(tmp_path, "dream")
    text = "héllo 世界 🙂 the world\n" * 5
    ids = tokenizer.encode(text)
    stream, seen = IncrementalText(tokenizer), ""
    for end in range(len(ids) + 1):
        now = stream.update(ids[:end])
        assert now.startswith(seen) and text.startswith(now)
        seen = now
    assert seen == text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_incremental_text_ends_as_the_whole_text(pair: tuple[Tokenizer, Any], data: st.DataObject) -> None:
    tokenizer = pair[0]
    ids = data.draw(st.lists(st.integers(0, 320), max_size=20))
    stream = IncrementalText(tokenizer)
    for end in sorted(data.draw(st.sets(st.integers(0, len(ids))))):
        stream.update(ids[:end])
    assert stream.update(ids, final=True) == tokenizer.decode(ids)


def test_incremental_text_starts_again_when_ids_change(tmp_path: Path) -> None:
    tokenizer = convert(tmp_path, "llada")
    stream = IncrementalText(tokenizer)
    stream.update(tokenizer.encode("hello world"))
    assert stream.update(tokenizer.encode("the")) == "the"


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("tokenizer.json", lambda text: "[" * 100_000),
        ("tokenizer.json", lambda text: text.replace('"added_tokens": [', '"added_tokens": 5, "x": [')),
        ("tokenizer.json", lambda text: text.replace('"type": "BPE"', '"type": "BPE", "unk_token": []')),
        (
            "tokenizer.json",
            lambda text: text.replace('"decoder": {', '"decoder": {"type": "Sequence", "decoders": 1, "z": {'),
        ),
        (
            "tokenizer_config.json",
            lambda text: text.replace("{", '{"added_tokens_decoder": {"' + "1" * 5000 + '": {}}, ', 1),
        ),
        ("tokenizer_config.json", lambda text: text.replace("{", '{"a": 1, "a": 2, ', 1)),
    ],
)
def test_hostile_tokenizer_files_are_typed_errors(tmp_path: Path, name: str, edit: Callable[[str], str]) -> None:
    write_tokenizer(tmp_path, "llada")
    file = tmp_path / name
    changed = edit(file.read_text(encoding="utf-8"))
    assert changed != file.read_text(encoding="utf-8")
    file.write_text(changed, encoding="utf-8")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer(_config)?\.json"):
        convert_tokenizer(tmp_path, model_config("llada"), tmp_path / "out")


def test_a_tokenizer_that_panics_when_it_decodes_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llada")
    file = tmp_path / "tokenizer.json"
    definition = json.loads(file.read_text(encoding="utf-8"))
    strip = {"type": "Strip", "content": "\n", "start": 0, "stop": 1}
    definition["decoder"] = {"type": "Sequence", "decoders": [definition["decoder"], {"type": "Fuse"}, strip]}
    file.write_text(json.dumps(definition), encoding="utf-8")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="not a valid tokenizer"):
        convert_tokenizer(tmp_path, model_config("llada"), tmp_path / "out")


def test_links_to_nothing_are_not_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: a link to .*gone, which is not there"):
        convert_tokenizer(tmp_path, model_config("llada"), tmp_path)


def test_another_chat_template_is_told(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "llada")
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | {"chat_template": "{{ messages }}"}
    file.write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "out").mkdir()
    with pytest.warns(UserWarning, match="its chat_template is not the published one"):
        convert_tokenizer(tmp_path, model_config("llada"), tmp_path / "out")
