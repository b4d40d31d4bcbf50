"""What the inputs of linear layers look like while the model unmasks canvases: prompts, then masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from d3llm_trt.config import EngineConfig
from d3llm_trt.errors import ConfigError, RequestError
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins.reference import FINE_EPS, select
from d3llm_trt.progress import OnProgress
from d3llm_trt.prompt_files import read_prompt_file
from d3llm_trt.prompts import as_chat, encode
from d3llm_trt.tokenizer import Tokenizer

ANSWER, PASSES = 96, 4
GENERATED_PROMPTS = (16, 48, 96)
SEED = 0
Watch = Callable[[str, Tensor, Tensor], None]


@dataclass
class Calibration:
    """The largest input of each linear layer in passes over canvases, and the canvas of the last pass."""

    peaks: dict[str, Tensor] = field(default_factory=dict)
    canvas: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class WatchedOps(TorchOps):
    """Ops for one canvas of ``length`` tokens, without a cache, that show each linear layer to ``watch``.

    ``watch`` gets the name of the layer, its input and its output.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], length: int, watch: Watch) -> None:
        shape = (config.num_layers, 1, 2, config.num_kv_heads, length, config.head_dim)
        cache = torch.empty(shape, dtype=weights["final_norm.weight"].dtype)
        super().__init__(config, weights, cache, Windows.whole(length), rotary_tables(config, length))
        self._watch = watch

    def linear(self, name: str, x: Tensor) -> Tensor:
        """The product, after it was shown."""
        product = super().linear(name, x)
        self._watch(name, x, product)
        return product


def canvases_for(config: ModelConfig, settings: EngineConfig, engine_dir: Path) -> list[Tensor]:
    """The canvases of a calibration: prompts of a file, by the tokenizer in ``engine_dir``, or generated ones.

    Raises ConfigError naming the file, the prompt and what is wrong with it.
    """
    if settings.quantization is None:
        return []
    if settings.calibration_prompts is None:
        return generated_canvases(config)
    limit = settings.max_seq_len
    prompts = encoded_prompts(Path(settings.calibration_prompts), Tokenizer.load(engine_dir), config.vocab_size, limit)
    return [_canvas(config, torch.tensor(ids), limit) for ids in prompts]


def generated_canvases(config: ModelConfig) -> list[Tensor]:
    """Prompts of random tokens, the same for every build, of lengths that differ."""
    generator, limit = torch.Generator().manual_seed(SEED), config.max_position_embeddings
    canvases = []
    for size in GENERATED_PROMPTS:
        ids = torch.randint(config.vocab_size - 1, (min(size, limit - 1),), generator=generator)
        ids += ids >= config.mask_token_id
        canvases.append(_canvas(config, ids, limit))
    return canvases


def _canvas(config: ModelConfig, prompt: Tensor, limit: int) -> Tensor:
    """The prompt and the masks of an answer, which is short where the model's limit is near."""
    masks = min(ANSWER, limit - len(prompt))
    return torch.cat((prompt, prompt.new_full((masks,), config.mask_token_id)))


def encoded_prompts(path: Path, tokenizer: Tokenizer | None, vocab_size: int, limit: int) -> Iterator[list[int]]:
    """Token ids of every prompt in a file; texts become a user's chat where the tokenizer has chat tokens.

    Raises ConfigError on one that the model cannot take, or that leaves no room for an answer below ``limit``.
    """
    for number, prompt in enumerate(read_prompt_file(path), start=1):
        chat = as_chat(prompt, None) if tokenizer is not None and tokenizer.has_chat_template else prompt
        try:
            _, ids = encode(chat, tokenizer, vocab_size, limit)
            if not 1 <= len(ids) < limit:
                fix = "change the prompt, or build with a higher max_seq_len"
                raise ConfigError(f"{len(ids)} tokens; allowed: at least 1 and fewer than max_seq_len, {limit}; {fix}")
        except (RequestError, ConfigError) as error:
            raise ConfigError(f"prompt file {path}: prompt {number}: {error}") from error
        yield ids


@torch.inference_mode()
def calibrate(
    config: ModelConfig, weights: Mapping[str, Tensor], canvases: Sequence[Tensor], progress: OnProgress | None = None
) -> Calibration:
    """Unmask every canvas in a few passes, each of which commits an equal part of its masks."""
    calibration = Calibration()
    for number, canvas in enumerate(canvases):
        for done in range(PASSES):
            calibration.canvas = canvas
            canvas = _after_pass(config, weights, canvas, PASSES - done, calibration.peaks)
            if progress is not None:
                progress("calibrate", number * PASSES + done + 1, len(canvases) * PASSES)
    return calibration


def _after_pass(
    config: ModelConfig, weights: Mapping[str, Tensor], canvas: Tensor, passes_left: int, peaks: dict[str, Tensor]
) -> Tensor:
    """The canvas with those masks committed that are most certain, of the first ones: decoders go block by block."""
    masked = (canvas == config.mask_token_id).nonzero()[:, 0]
    count = len(masked) // passes_left
    candidates = masked[: max(count + count // 2, 1)]

    def keep_peak(name: str, x: Tensor, product: Tensor) -> None:
        peak = x.abs().amax().float()
        peaks[name] = torch.maximum(peaks.get(name, peak), peak)

    ops = WatchedOps(config, weights, len(canvas), keep_peak)
    logits = forward(config, ops, canvas, (candidates - int(config.shifted_logits)).clamp(min=0))
    scores = select(logits, config.mask_token_id, torch.full(candidates.shape, FINE_EPS), None)
    surest = scores.entropy.argsort(stable=True)[:count]
    return canvas.index_put((candidates[surest],), scores.greedy[surest])
