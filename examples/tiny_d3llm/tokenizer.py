"""Tokenizer files of both families, made from the problems: LLaDA's single file, Dream's vocabulary and merges.

Run ``python -m examples.tiny_d3llm.tokenizer`` to write them into ``examples/checkpoints``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from d3llm_trt.model.config import Family
from examples.tiny_d3llm.tasks import TASKS, Task

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
CORPUS_SIZE, CORPUS_SEED = 4000, 7
PLAIN_TOKENS = 560  # 256 bytes and the merges
TABLE_ROWS = 576  # rows of embedding and LM head; as in the published models, the last ones belong to no token
END = "<|endoftext|>"
SPECIALS: dict[Family, tuple[str, ...]] = {
    "llada": (
        "<|startoftext|>", END, "<|mdm_mask|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
    ),
    "dream": (END, "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"),
}  # fmt: skip
TOKENIZER_FILES: dict[Family, tuple[str, ...]] = {
    "llada": ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "dream": ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
}
MASKS: dict[Family, str] = {"llada": "<|mdm_mask|>", "dream": "<|mask|>"}
ANSWER_ENDS: dict[Family, str] = {"llada": "<|eot_id|>", "dream": "<|im_end|>"}
SYSTEM_MESSAGE = "You are a helpful assistant."
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLADA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>'"
    " + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
DREAM_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + SYSTEM_MESSAGE + "<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def special_id(family: Family, token: str) -> int:
    """Id of a special token: they follow the plain ones."""
    return PLAIN_TOKENS + SPECIALS[family].index(token)


def prompt_text(family: Family, question: str) -> str:
    """The chat prompt of a question, special tokens spelled out."""
    if family == "llada":
        user = f"<|start_header_id|>user<|end_header_id|>\n\n{question.strip()}<|eot_id|>"
        return f"<|startoftext|>{user}<|start_header_id|>assistant<|end_header_id|>\n\n"
    system = f"<|im_start|>system\n{SYSTEM_MESSAGE}<|im_end|>\n"
    return f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def train_tokenizer(task: Task, family: Family) -> Tokenizer:
    """Byte-level BPE on a fixed corpus; a digit is always a token of its own."""
    tokenizer = _tokenizer(family, models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=PLAIN_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(task), trainer)
    return _with_specials(family, tokenizer)


def _tokenizer(family: Family, model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(family)
    tokenizer.decoder = decoders.ByteLevel()
    if family == "dream":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _with_specials(family: Family, tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIALS[family]])
    return tokenizer


def _pre_tokenizer(family: Family) -> pre_tokenizers.PreTokenizer:
    if family == "llada":
        return pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _corpus(task: Task) -> Iterator[str]:
    for problem in task.problems(CORPUS_SIZE, CORPUS_SEED, "train"):
        yield f"user\n\n{problem.question}"
        yield f"assistant\n\n{problem.answer}"
        yield f"system\n{SYSTEM_MESSAGE}"


def write_tokenizer(task: Task, family: Family, directory: Path) -> None:
    """Train the family's tokenizer and write the files that its published checkpoints have."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(task, family)
    if family == "llada":
        tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
        _write_json(directory / "tokenizer_config.json", _llada_settings(tokenizer))
        _write_json(
            directory / "special_tokens_map.json", {"bos_token": "<|startoftext|>", "eos_token": END, "pad_token": END}
        )
        return
    tokenizer.model.save(str(directory))
    _write_json(directory / "tokenizer_config.json", _dream_settings(tokenizer))
    _write_json(directory / "special_tokens_map.json", _dream_special_tokens())


def _llada_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": _added_tokens(tokenizer, "llada"),
        "bos_token": "<|startoftext|>",
        "chat_template": LLADA_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 1000000000000000019884624838656,
        "pad_token": END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _dream_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": _added_tokens(tokenizer, "dream"),
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"],
        "bos_token": "<|beginoftext|>",
        "chat_template": DREAM_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "mask_token": "<|mask|>",
        "model_max_length": 131072,
        "pad_token": END,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": END,
    }


def _dream_special_tokens() -> dict[str, Any]:
    roles = {"bos_token": "<|beginoftext|>", "eos_token": END, "mask_token": "<|mask|>", "pad_token": END}
    names = ["<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>"]
    return {"additional_special_tokens": names, **roles, "unk_token": END}


def _added_tokens(tokenizer: Tokenizer, family: Family) -> dict[str, dict[str, Any]]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {str(tokenizer.token_to_id(text)): {"content": text, **flags, "special": True} for text in SPECIALS[family]}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def checkpoint_dir(task: Task, family: Family) -> Path:
    """Where the finished checkpoint of a family lives."""
    return CHECKPOINTS / f"{task.name}-{family}"


def load_tokenizer(task: Task, family: Family) -> Tokenizer:
    """The tokenizer in the checkpoint directory, which every stage reads, so that they agree on all ids."""
    directory = checkpoint_dir(task, family)
    if family == "llada":
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    return _with_specials(family, _tokenizer(family, models.BPE.from_file(str(vocabulary), str(merges))))


def main() -> None:
    for task, family in product(TASKS.values(), get_args(Family)):
        write_tokenizer(task, family, checkpoint_dir(task, family))
        print(f"wrote the tokenizer of {checkpoint_dir(task, family)}")


if __name__ == "__main__":
    main()
