"""Small tokenizer files of both families, the same on every run: all bytes and a few merged words."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from d3llm_trt.model.config import Family, ModelConfig

WORDS = ("Ġthe", "Ġand", "user", "assistant", "system", "hello", "Ġworld", "Ġhelpful", "You", "ĠĠ", "ĊĊ", "Ã©", "Ġ1")
SPECIALS: dict[Family, tuple[str, ...]] = {
    "llada": (
        "<|startoftext|>", "<|endoftext|>", "<role>", "<|mdm_mask|>",
        "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    ),
    "dream": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|beginoftext|>", "<|mask|>"),
}  # fmt: skip
NOT_SPECIAL = ("<role>", "<tool_call>")
LLADA_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
DREAM_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """All bytes, then the words of WORDS built from left to right, with the merges that build them."""
    tokens = sorted(ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                tokens.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    return {token: token_id for token_id, token in enumerate(tokens)}, merges


def special_ids(family: Family) -> dict[str, int]:
    """Content and id of every added token: they follow the vocabulary."""
    first = len(vocabulary()[0])
    return {content: first + offset for offset, content in enumerate(SPECIALS[family])}


def vocab_size() -> int:
    """Enough embedding rows for either family's tokens, and some that no token uses."""
    return len(vocabulary()[0]) + 16


def model_config(family: Family) -> ModelConfig:
    """The configuration of a tiny model that fits the tokenizer."""
    ids = special_ids(family)
    end = ids["<|endoftext|>"]
    mask = ids["<|mdm_mask|>" if family == "llada" else "<|mask|>"]
    return ModelConfig(family, vocab_size(), 32, 64, 1, 2, 2, 16, 1e-6, 1e4, 128, mask, end, end)


def write_tokenizer(path: Path, family: Family) -> None:
    """Write the files that the family's published checkpoints have: LLaDA's single file, Dream's halves."""
    path.mkdir(parents=True, exist_ok=True)
    vocab, merges = vocabulary()
    entries = {i: _added_token(content) for content, i in special_ids(family).items()}
    if family == "llada":
        model = {"type": "BPE", "vocab": vocab, "merges": [" ".join(merge) for merge in merges]}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        definition = {
            "version": "1.0",
            "added_tokens": [{"id": i, **entry} for i, entry in entries.items()],
            "pre_tokenizer": byte_level,
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": model,
        }
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|startoftext|>"}
        _write(path / "tokenizer.json", definition)
        _write(path / "tokenizer_config.json", settings | {"chat_template": LLADA_TEMPLATE})
        return
    _write(path / "vocab.json", vocab)
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<|beginoftext|>", "eos_token": "<|endoftext|>"}
    decoder = {str(i): entry for i, entry in entries.items()}
    _write(
        path / "tokenizer_config.json", settings | {"added_tokens_decoder": decoder, "chat_template": DREAM_TEMPLATE}
    )


def _added_token(content: str) -> dict[str, object]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, **flags, "special": content not in NOT_SPECIAL}


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
