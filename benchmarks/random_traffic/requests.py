"""Random requests, good and bad, that follow from a seed and their names alone."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Any

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.errors import ConfigError, D3llmError, RequestError
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.engines.base import EngineSpec
from examples.tiny_d3llm.problems import problem_stream

BAD_SHARE, LEFT_SHARE = 0.12, 0.15
LEFT_WITHIN = 2.0  # seconds


@dataclass(frozen=True)
class Ask:
    """One request in plain values.

    ``error`` is what a bad one must raise; ``leave_after`` counts seconds; the answers with the highest ``lot`` are
    compared with those alone.
    """

    name: str
    kind: str
    prompt: Any
    settings: Any
    stream: bool = False
    canvas: bool = False
    leave_after: float | None = None
    lot: float = 0.0
    error: type[D3llmError] | None = None

    @property
    def params(self) -> Any:
        """The settings as SamplingParams. Raises what is wrong with them."""
        if not isinstance(self.settings, dict):
            return self.settings
        decoding = self.settings["decoding"]
        made = DecodingConfig.from_dict(decoding) if isinstance(decoding, dict) else decoding
        return SamplingParams(**{**self.settings, "decoding": made})

    def described(self) -> dict[str, str]:
        """For a report."""
        return {"name": self.name, "kind": self.kind, "prompt": short(self.prompt), "settings": short(self.settings)}


def short(value: object, most: int = 400) -> str:
    """A value as text that fits into a report."""
    text = ascii(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def make_ask(llm: LLM, seed: int, name: str) -> Ask:
    """A good request or a bad one."""
    rng = random.Random(f"{seed}:{name}")
    if rng.random() < BAD_SHARE:
        return replace(rng.choice(bad_asks(llm.spec)), name=name, stream=rng.random() < 0.5)
    kind, prompt, length = _prompt(rng, llm)
    return Ask(
        name,
        kind,
        prompt,
        _settings(rng, llm.spec, _answer_length(rng, llm.spec.max_seq_len - length)),
        stream=rng.random() < 0.5,
        canvas=rng.random() < 0.1,
        leave_after=LEFT_WITHIN * rng.random() ** 5 if rng.random() < LEFT_SHARE else None,
        lot=rng.random(),
    )


def _prompt(rng: random.Random, llm: LLM) -> tuple[str, Any, int]:
    """Its kind, itself, and its length in ids."""
    assert llm.tokenizer is not None
    question = next(problem_stream(rng.getrandbits(32), "heldout")).question
    kind = rng.choice(("chat", "chat", "ids", "ids", "text"))
    if kind == "chat":
        chat = [{"role": "user", "content": question}]
        return kind, chat, len(llm.tokenizer.chat_ids(chat))
    if kind == "text":
        text = rng.choice(("", "naïve 日本語 🎉 ", "\n\n<|mdm_mask|>")) + question[: rng.randint(1, len(question))]
        return kind, rng.choice((text, {"prompt": text})), len(llm.tokenizer.encode(text))
    ids = _ids(rng, llm.spec)
    return kind, {"prompt_token_ids": ids}, len(ids)


def _ids(rng: random.Random, spec: EngineSpec) -> list[int]:
    """Any ids, sometimes with masks to be filled in."""
    mask, limit = spec.model_config.mask_token_id, spec.max_seq_len
    ids = [rng.randrange(mask) for _ in range(rng.randint(1, limit - 1 if rng.random() < 0.3 else limit // 4))]
    for _ in range(rng.randint(1, 5) if rng.random() < 0.2 else 0):
        ids[rng.randrange(len(ids))] = mask
    return ids


def _settings(rng: random.Random, spec: EngineSpec, tokens: int) -> dict[str, Any]:
    return {
        "max_tokens": tokens,
        "temperature": rng.choice((0.0, 0.0, 0.0, 0.3, 1.0, 5.0)),
        "seed": rng.getrandbits(62),
        "ignore_eos": rng.random() < 0.2,
        "end_id": rng.randrange(spec.model_config.mask_token_id) if rng.random() < 0.1 else None,
        "stop": rng.choice((None, None, None, "####", "\n", [" has", "left"], ["dollars", "He", "= "])),
        "decoding": _decoding(rng, tokens),
        "stop_token_ids": [rng.randrange(spec.model_config.mask_token_id)] if rng.random() < 0.1 else [],
        "min_tokens": rng.randint(0, tokens) if rng.random() < 0.1 else 0,
        "top_p": rng.choice((1.0, 1.0, 0.95, 0.3)),
        "top_k": rng.choice((0, 0, 0, 1, 20)),
    }


def _answer_length(rng: random.Random, fits: int) -> int:
    """Mostly short, sometimes anything that fits, sometimes all of it."""
    kind = rng.random()
    return fits if kind < 0.05 else rng.randint(1, fits if kind < 0.2 else min(fits, 100))


def _decoding(rng: random.Random, tokens: int) -> dict[str, Any]:
    algorithm, size = rng.choice(ALGORITHMS), rng.choice((1, 4, 7, 16, 32, 32, 32, 64, 500))
    settings = {
        "algorithm": algorithm,
        "block_size": size,
        "threshold": rng.choice(("auto", "auto", "auto", None, 0.05, 0.4, 1.5)),
        "block_add_threshold": rng.choice((0.0, 0.1, 0.1, 0.5, 1.0)),
        "decoded_token_threshold": rng.choice((0.1, 0.95, 0.95, 1.0)),
        "early_stop": rng.random() < 0.8,
    }
    blocks = math.ceil(tokens / size)
    if algorithm == "MultiBlock" and rng.random() < 0.7:
        settings |= {"cache_delay_iter": rng.randint(0, 4), "refresh_interval": rng.choice((None, 1, 2, 5))}
    if algorithm == "LowConfidence" and rng.random() < 0.6:
        settings["steps"] = blocks * rng.randint(1, tokens // blocks)
    return settings


def bad_asks(spec: EngineSpec) -> list[Ask]:
    """Requests that are bad in every way the runtime knows, without names."""
    plain: dict[str, Any] = {"max_tokens": 4, "decoding": {}}
    wrong = [
        *((prompt, plain, RequestError) for prompt in _bad_prompts(spec)),
        *(("hi", plain | changes, RequestError) for changes in _bad_settings(spec)),
        *(("hi", plain | {"decoding": decoding}, ConfigError) for decoding in _BAD_DECODINGS),
        ({"prompt_token_ids": [1] * 100}, plain | {"max_tokens": spec.max_seq_len - 99}, RequestError),
        ("hi", 5, RequestError),
    ]
    return [
        Ask("", f"bad: {short(prompt, 60)}, {short(settings, 120)}", prompt, settings, error=error)
        for prompt, settings, error in wrong
    ]


def _bad_prompts(spec: EngineSpec) -> list[Any]:
    limit, others = spec.max_seq_len, [None, b"bytes", 3, [], ["hi"], {"prompts": "hi"}, {"prompt": ["hi"]}]
    texts = ["", "\ud800", "x " * limit, "x" * (128 * limit + 1)]
    ids: list[Any] = [[], [1] * limit, [1, spec.model_config.vocab_size], [-1], [True], [1.0], "12", None]
    messages = [{"role": "robot", "content": "hi"}, {"role": "user"}, {"role": "user", "content": None}]
    chats = [*([message] for message in messages), {"role": "user", "content": "hi"}]
    return [*others, *texts, *({"prompt_token_ids": each} for each in ids), *chats]


def _bad_settings(spec: EngineSpec) -> list[dict[str, Any]]:
    values: dict[str, tuple[Any, ...]] = {
        "max_tokens": (0, -5, 1.5, True, 1 << 70),
        "temperature": (-1, math.nan, math.inf, "hot", 1e39, 1e-39),
        "seed": (-1, 1 << 63),
        "top_p": (0, 1.5, math.nan, "most"),
        "top_k": (-2, 1.5, True),
        "min_tokens": (-1, 5, None),
        "stop_token_ids": (5, [-1], [spec.model_config.vocab_size], [spec.model_config.mask_token_id], list(range(99))),
        "logprobs": (2, -1, "all"),
        "ignore_eos": (1,),
        "end_id": (-1, spec.model_config.vocab_size, spec.model_config.mask_token_id),
        "stop": ("", [""], [3], 5),
        "decoding": ("MultiBlock", None),
    }
    unfit = {"max_tokens": 72, "decoding": {"algorithm": "LowConfidence", "steps": 7}}
    return [*({name: value} for name, listed in values.items() for value in listed), unfit]


_BAD_DECODINGS: tuple[dict[str, Any], ...] = (
    {"algorithm": "Vanilla"}, {"block_size": 0}, {"block_size": 1.5}, {"threshold": "low"}, {"threshold": math.nan},
    {"block_add_threshold": None}, {"decoded_token_threshold": 1.5}, {"cache_delay_iter": 1}, {"steps": 4},
    {"algorithm": "MultiBlock", "cache_delay_iter": -1}, {"algorithm": "MultiBlock", "refresh_interval": 2},
    {"algorithm": "MultiBlock", "cache": True}, {"algorithm": "LowConfidence", "steps": 0}, {"early_stop": 1},
)  # fmt: skip
