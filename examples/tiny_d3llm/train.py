"""Stage 1: masked-diffusion training. ``python -m examples.tiny_d3llm.train --family llada --out DIR --seconds 420``"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from d3llm_trt.model.config import FAMILIES, ModelConfig
from examples.tiny_d3llm.data import SHORT_CANVASES, Batches, Dataset, make_dataset
from examples.tiny_d3llm.network import Weights, as_deployed, initial_weights, position_logits, tiny_config
from examples.tiny_d3llm.optimize import optimize
from examples.tiny_d3llm.problems import make_problems

SEED = 1
LEAST_RATIO = 0.02  # of masked positions; bounds the weight 1/t
PADDING_WEIGHT = 0.1  # of EOS behind the answer, which is easy and more than half of a canvas


def mask_ratios(batch: int, device: torch.device) -> Tensor:
    """One ratio per canvas, uniform in 0..1 and evenly spread over the batch: ``[B, 1]``."""
    spread = (torch.arange(batch, device=device) / batch + torch.rand((), device=device)) % 1.0
    return (LEAST_RATIO + (1 - LEAST_RATIO) * spread)[:, None]


def token_weights(dataset: Dataset, rows: Tensor, length: int) -> Tensor:
    """How much each position counts: 0 in the prompt, 1 in the answer and its first EOS, little behind: ``[B, L]``."""
    at = torch.arange(length, device=rows.device)
    answer = (at >= dataset.prompt_length[rows, None]).float()
    return torch.where(at > dataset.total_length[rows, None], PADDING_WEIGHT * answer, answer)


def masked_logits(config: ModelConfig, weights: Weights, ids: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``[M, vocab]`` at the masked positions of ``ids[B, L]``, and those positions, flat."""
    positions = masked.flatten().nonzero()[:, 0]
    canvases = torch.where(masked, config.mask_token_id, ids)
    return position_logits(config, as_deployed(weights), canvases, positions), positions


def diffusion_loss(config: ModelConfig, weights: Weights, dataset: Dataset, rows: Tensor, length: int) -> Tensor:
    """Cross-entropy of masked answer tokens, weighted 1/t."""
    ids = dataset.ids[rows, :length].long()
    counts = token_weights(dataset, rows, length)
    ratio = mask_ratios(len(rows), rows.device)
    masked = (torch.rand(ids.shape, device=ids.device) < ratio) & (counts > 0)
    logits, positions = masked_logits(config, weights, ids, masked)
    losses = F.cross_entropy(logits, ids.flatten()[positions], reduction="none")
    return (losses * (counts / ratio).flatten()[positions]).sum() / counts.sum()


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for FAMILY.base.safetensors")
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--problems", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=384)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    device, config = default_device(), tiny_config(args.family)
    dataset = make_dataset(args.family, make_problems(args.problems, SEED, "train")).to(device)
    batches = Batches(dataset, args.batch, SEED, SHORT_CANVASES)
    weights = {name: weight.to(device) for name, weight in initial_weights(config, SEED).items()}

    def loss_of(current: Weights, progress: float) -> Tensor:
        return diffusion_loss(config, current, dataset, *batches.draw())

    trained = optimize(weights, loss_of, args.seconds, args.rate, f"train {args.family}")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.cpu() for name, weight in trained.items()}, args.out / f"{args.family}.base.safetensors")


if __name__ == "__main__":
    main()
