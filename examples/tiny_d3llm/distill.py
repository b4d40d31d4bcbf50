"""Stage 2: pseudo-trajectory distillation, so that many tokens are certain at once (d3LLM's recipe).

The trained model decodes training problems one token per pass. The order in which it commits tokens is the
trajectory: at a moment of it, what was committed is visible, the rest is masked, and the model learns the tokens of
the next passes. The window of passes and the noise on visible tokens grow. An entropy term at temperature 0.5 makes
correctly predicted tokens more certain. Canvases are longer than in stage 1, up to the model's limit.

``python -m examples.tiny_d3llm.distill --family llada --base DIR --out DIR --seconds 300``
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from d3llm_trt.model.config import FAMILIES, Family, ModelConfig
from examples.tiny_d3llm.check import by_prompt_length, decode_group, exact_rows
from examples.tiny_d3llm.data import ALL_CANVASES, Batches, Dataset, make_dataset
from examples.tiny_d3llm.decode import low_confidence
from examples.tiny_d3llm.network import Weights, as_deployed, tiny_config
from examples.tiny_d3llm.optimize import optimize
from examples.tiny_d3llm.problems import make_problems
from examples.tiny_d3llm.train import SEED, default_device, diffusion_loss, masked_logits, token_weights

NEVER = 255  # commit step of what the trajectory left masked
ANSWER_COUNTS = (64, 96, 128)
CHUNK = 6000  # problems decoded between two looks at the clock
FIRST_WINDOW, LAST_WINDOW = 4, 64  # passes ahead that are learned
MOST_NOISE = 0.2  # share of visible answer tokens masked again
TEMPERATURE = 0.5


@dataclass(frozen=True)
class Trajectories:
    """Problems that the model solved, and the pass that committed each position (0: prompt): ``[N, MAX_CANVAS]``."""

    dataset: Dataset
    commit: Tensor


def collect(config: ModelConfig, weights: Weights, family: Family, seconds: float, most: int) -> Trajectories:
    """Decode training problems until the time is over or ``most`` are decoded; keep the exact answers."""
    device = default_device()
    problems = make_problems(most, SEED + 1, "train")
    parts: list[Trajectories] = []
    start = time.monotonic()
    for first in range(0, most, CHUNK):
        dataset = make_dataset(family, problems[first : first + CHUNK]).to(device)
        count = ANSWER_COUNTS[len(parts) % len(ANSWER_COUNTS)]
        parts.append(_decode_chunk(config, weights, dataset, count))
        if time.monotonic() - start > seconds:
            break
    rows = sum(len(part.commit) for part in parts)
    print(f"distill {family}: {rows} trajectories, {time.monotonic() - start:.0f} s", flush=True)
    if not rows:
        raise SystemExit(f"distill {family}: the base model solved none of the problems; train it for longer")
    return _joined(parts)


def _decode_chunk(config: ModelConfig, weights: Weights, dataset: Dataset, count: int) -> Trajectories:
    parts = []
    for group in by_prompt_length(dataset):
        decoded = decode_group(config, weights, group, count, lambda *_: low_confidence(1))
        start = int(group.prompt_length[0])
        steps = torch.full_like(group.ids, NEVER)
        steps[:, :start] = 0
        room = min(count, steps.shape[1] - start)
        steps[:, start : start + room] = (
            decoded.commit[:, :room].masked_fill(decoded.commit[:, :room] == 0, NEVER).short()
        )
        keep = exact_rows(config, group, decoded).nonzero()[:, 0]
        parts.append(Trajectories(group.rows(keep), steps[keep]))
    return _joined(parts)


def _joined(parts: list[Trajectories]) -> Trajectories:
    """All parts as one, sorted by length again."""
    names = ("ids", "prompt_length", "total_length", "order")
    joined = Dataset(*(torch.cat([getattr(part.dataset, name) for part in parts]) for name in names))
    order = torch.argsort(joined.total_length, stable=True)
    return Trajectories(joined.rows(order), torch.cat([part.commit for part in parts])[order])


def trajectory_masks(commit: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """Masked positions at a random moment of each trajectory, and those among them to learn: ``[B, L]`` each."""
    last = commit.masked_fill(commit == NEVER, 0).amax(1, keepdim=True)
    moment = (torch.rand(last.shape, device=commit.device) * last).floor()
    noise = torch.rand_like(moment) * MOST_NOISE * progress
    masked = (commit > moment) | ((commit > 0) & (torch.rand(commit.shape, device=commit.device) < noise))
    window = FIRST_WINDOW + (LAST_WINDOW - FIRST_WINDOW) * progress
    return masked, masked & (commit <= moment + window)


def certainty_loss(logits: Tensor, correct: Tensor, counts: Tensor) -> Tensor:
    """Mean entropy at TEMPERATURE of the tokens that are predicted correctly."""
    log_p = (logits / TEMPERATURE).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    counts = counts * correct
    return (entropy * counts).sum() / counts.sum().clamp(min=1.0)


def trajectory_loss(
    config: ModelConfig,
    weights: Weights,
    data: Trajectories,
    rows: Tensor,
    length: int,
    progress: float,
    certainty: float,
) -> Tensor:
    """Cross-entropy in the window, plus ``certainty`` times the entropy of correct tokens."""
    ids = data.dataset.ids[rows, :length].long()
    masked, learned = trajectory_masks(data.commit[rows, :length], progress)
    counts = token_weights(data.dataset, rows, length) * learned
    logits, positions = masked_logits(config, weights, ids, masked)
    wanted, counts = ids.flatten()[positions], counts.flatten()[positions]
    losses = F.cross_entropy(logits, wanted, reduction="none")
    likely = (losses * counts).sum() / counts.sum().clamp(min=1.0)
    return likely + certainty * certainty_loss(logits, logits.argmax(-1) == wanted, counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--base", type=Path, required=True, help="folder with FAMILY.base.safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder for FAMILY.final.safetensors")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--trajectory-seconds", type=float, default=60)
    parser.add_argument("--trajectories", type=int, default=60_000)
    parser.add_argument("--problems", type=int, default=300_000, help="for the diffusion loss that goes on beside")
    parser.add_argument("--batch", type=int, default=192, help="canvases of each of the two losses per step")
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--certainty", type=float, default=0.3)
    args = parser.parse_args()
    torch.manual_seed(SEED + 1)
    device, config = default_device(), tiny_config(args.family)
    base = load_file(args.base / f"{args.family}.base.safetensors", device=str(device))
    data = collect(config, as_deployed(base), args.family, args.trajectory_seconds, args.trajectories)
    dataset = make_dataset(args.family, make_problems(args.problems, SEED, "train")).to(device)
    moments = Batches(data.dataset, args.batch, SEED + 1, ALL_CANVASES)
    ratios = Batches(dataset, args.batch, SEED + 2, ALL_CANVASES)

    def loss_of(current: Weights, progress: float) -> Tensor:
        rows, length = moments.draw()
        on_trajectory = trajectory_loss(config, current, data, rows, length, progress, args.certainty)
        return on_trajectory + diffusion_loss(config, current, dataset, *ratios.draw())

    trained = optimize(base, loss_of, args.seconds, args.rate, f"distill {args.family}")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.cpu() for name, weight in trained.items()}, args.out / f"{args.family}.final.safetensors")


if __name__ == "__main__":
    main()
