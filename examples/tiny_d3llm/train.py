"""Stage 1: masked-diffusion training. ``python -m examples.tiny_d3llm.train --family llada --out DIR --seconds 420``"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from d3llm_trt.model.config import FAMILIES, ModelConfig
from d3llm_trt.model.torch_ops import RotaryTables, rotary_tables
from examples.tiny_d3llm.data import training_set
from examples.tiny_d3llm.network import Weights, all_logits, as_deployed, initial_weights, tiny_config
from examples.tiny_d3llm.optimize import Save, optimize
from examples.tiny_d3llm.packing import Layout, Pack, Packer
from examples.tiny_d3llm.tasks import TASKS

SEED = 1
LEAST_RATIO = 0.05  # of masked positions; bounds the weight 1/t
STEEPEST, FLATTEST = 8, 128  # tokens over which the ratio of a ramp rises from 0 to 1
EVEN_EVERY = 4  # canvases, one of which is masked at one ratio
GOLDEN = 0.6180339887
TEMPERATURE = 0.5  # of the entropy that certainty lowers


@dataclass(frozen=True)
class Lesson:
    """What one pack teaches, ``[T]`` each: masked ids, the true ones, and how much each counts.

    ``counts`` weighs the cross-entropy, ``sharpened``, if any, the entropy of what is predicted correctly.
    """

    layout: Layout
    canvases: Tensor
    ids: Tensor
    counts: Tensor
    sharpened: Tensor | None = None


LessonLoss = Callable[[Weights, Lesson], Tensor]


def lesson_loss(config: ModelConfig, tables: RotaryTables, weights: Weights, lesson: Lesson) -> Tensor:
    """Cross-entropy, and entropy at TEMPERATURE of the tokens that are predicted correctly: one number."""
    logits = all_logits(config, as_deployed(weights), lesson.canvases, lesson.layout, tables)
    loss = (F.cross_entropy(logits, lesson.ids, reduction="none") * lesson.counts).sum()
    if lesson.sharpened is None:
        return loss
    log_p = (logits / TEMPERATURE).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return loss + (entropy * lesson.sharpened * (logits.argmax(-1) == lesson.ids)).sum()


def make_loss(config: ModelConfig, device: torch.device) -> LessonLoss:
    """:func:`lesson_loss`, compiled on a GPU: all packs are of one shape."""
    loss = partial(lesson_loss, config, rotary_tables(config, config.max_position_embeddings, device))
    return torch.compile(loss, dynamic=False) if device.type == "cuda" else loss


def mask_ratios(pack: Pack, answer_lengths: Tensor) -> Tensor:
    """Share of masked tokens at each position, ``[T]``: what decoding shows.

    In a quarter of the canvases it is one ratio t ~ U(0, 1). In the others it rises along the answer from 0 to 1:
    decoding fills the front first and sees masks behind, and only there facts must be looked up in the question,
    since what stands behind gives them away.
    """
    canvas, device = pack.layout.canvas, pack.ids.device
    number = torch.arange(len(pack.layout.edges) - 1, device=device)
    luck = torch.rand(2, len(number), device=device)
    ratio = (number * GOLDEN + torch.rand((), device=device)) % 1.0  # evenly spread over any number of canvases
    width = (STEEPEST * (FLATTEST / STEEPEST) ** luck[0])[canvas]
    middle = luck[1][canvas] * answer_lengths
    ramp = ((pack.answer - middle) / width + 0.5).clamp(0.0, 1.0)
    even = LEAST_RATIO + (1 - LEAST_RATIO) * ratio[canvas]
    return torch.where((number % EVEN_EVERY == 0)[canvas], even, ramp)


def diffusion_lesson(config: ModelConfig, pack: Pack, answer_lengths: Tensor) -> Lesson:
    """Answer tokens masked at random; each counts 1/t."""
    ratio = mask_ratios(pack, answer_lengths)
    masked = (torch.rand_like(ratio) < ratio) & (pack.counts > 0)
    counts = pack.counts * masked / ratio.clamp(min=LEAST_RATIO) / pack.counts.sum()
    return Lesson(pack.layout, hidden(config, pack, masked), pack.ids, counts)


def hidden(config: ModelConfig, pack: Pack, masked: Tensor) -> Tensor:
    """The ids with masks."""
    return torch.where(masked, config.mask_token_id, pack.ids)


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def saver(path: Path) -> Save:
    """Writes weights to a file, which is either the old or the new one at any time."""

    def save(weights: Weights) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.cpu() for name, weight in weights.items()}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    return save


def training_options(description: str | None) -> argparse.ArgumentParser:
    """Options of both stages."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="tiny-d3llm")
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--seconds", type=float, default=360)
    parser.add_argument("--problems", type=int, default=200_000)
    parser.add_argument("--packed", type=int, default=49152, help="tokens per step")
    return parser


def main() -> None:
    parser = training_options(__doc__)
    parser.add_argument("--rate", type=float, default=6e-3)
    parser.add_argument("--start", type=Path, help="packed weights to go on from")
    args = parser.parse_args()
    task, device = TASKS[args.task], default_device()
    config = tiny_config(task, args.family)
    dataset = training_set(task, args.family, args.problems, SEED).to(device)
    torch.manual_seed(SEED)
    packer = Packer(task, dataset, args.packed)
    loss = make_loss(config, device)
    answer_lengths = dataset.total_length - dataset.prompt_length

    def loss_of(current: Weights, progress: float) -> Tensor:
        pack = packer.draw()
        return loss(current, diffusion_lesson(config, pack, answer_lengths[pack.rows]))

    first = load_file(args.start) if args.start else initial_weights(config, SEED)
    weights = {name: weight.to(device) for name, weight in first.items()}
    save = saver(args.out / f"{args.family}.base.safetensors")
    save(optimize(weights, loss_of, args.seconds, args.rate, f"train {args.family}", save))


if __name__ == "__main__":
    main()
