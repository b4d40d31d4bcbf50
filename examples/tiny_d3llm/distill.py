"""Stage 2: pseudo-trajectory distillation, so that many tokens are certain at once (d3LLM's recipe).

The trained model decodes training problems one token per pass. The order in which it commits tokens is the
trajectory: at a moment of it, what was committed is visible, the rest is masked, and the model learns the tokens of
the next passes. The window of passes and the noise on visible tokens grow. An entropy term at temperature 0.5 makes
correctly predicted tokens more certain. The diffusion loss goes on beside it.

``python -m examples.tiny_d3llm.distill --family llada --base DIR --out DIR --seconds 300``
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from d3llm_trt.model.config import ModelConfig
from examples.tiny_d3llm.check import AT_A_TIME, exact_rows
from examples.tiny_d3llm.data import Dataset, joined, training_set
from examples.tiny_d3llm.decode import Decoded, decode, low_confidence
from examples.tiny_d3llm.network import Weights, as_deployed, tiny_config
from examples.tiny_d3llm.optimize import optimize
from examples.tiny_d3llm.packing import Pack, Packer
from examples.tiny_d3llm.tasks import TASKS
from examples.tiny_d3llm.train import (
    SEED,
    Lesson,
    default_device,
    diffusion_lesson,
    hidden,
    make_loss,
    saver,
    training_options,
)

NEVER = 999  # commit step of what the trajectory left masked
FIRST_WINDOW, LAST_WINDOW = 4, 64  # passes ahead that are learned
MOST_NOISE = 0.2  # share of visible answer tokens masked again


@dataclass(frozen=True)
class Trajectories:
    """Problems that the model solved, with tokens of their own, and the passes that committed them (0: prompt).

    Those of problem n and of its first EOS are ``commit[start[n] + n :]``; ``last[N]`` is the last of them.
    """

    dataset: Dataset
    commit: Tensor
    last: Tensor

    def commits(self, pack: Pack) -> Tensor:
        """The pass that committed each position of the pack, NEVER behind the answer: ``[T]``."""
        rows, positions = pack.rows, pack.layout.positions
        ends = self.dataset.total_length[rows]
        found = self.commit[self.dataset.start[rows] + rows + torch.minimum(positions, ends)]
        return torch.where(positions <= ends, found, NEVER)


def collect(config: ModelConfig, weights: Weights, problems: Dataset, seconds: float) -> Trajectories:
    """Decode problems until the time is over; keep those whose answer is exact.

    Raises SystemExit if there is none.
    """
    start = time.monotonic()
    order = torch.randperm(len(problems.start), device=problems.ids.device)
    found: list[Trajectories] = []
    for rows in order.split(AT_A_TIME):
        by_length = (problems.total_length - problems.prompt_length)[rows].argsort()
        found.append(_decoded(config, weights, problems.rows(rows[by_length])))
        if time.monotonic() - start > seconds:
            break
    kept = sum(len(part.last) for part in found)
    print(f"trajectories: {kept} of {len(found) * AT_A_TIME}, {time.monotonic() - start:.0f} s", flush=True)
    if not kept:
        raise SystemExit("the base model solved none of the problems; train it for longer")
    commit, last = (torch.cat([getattr(part, name) for part in found]) for name in ("commit", "last"))
    return Trajectories(joined([part.dataset for part in found]), commit, last)


def _decoded(config: ModelConfig, weights: Weights, problems: Dataset) -> Trajectories:
    count = int((problems.total_length - problems.prompt_length).max()) + 1
    decoded = decode(config, weights, problems, count, low_confidence(1))
    return compact(problems, decoded, exact_rows(config, problems, decoded))


def compact(problems: Dataset, decoded: Decoded, keep: Tensor) -> Trajectories:
    """The trajectories of the decoded problems ``keep[N]``."""
    chosen = keep.nonzero()[:, 0]
    data, commit = problems.rows(chosen), decoded.commit[chosen]
    rows, positions = _flat(data.total_length)
    start = data.total_length.cumsum(0) - data.total_length
    own = Dataset(data.tokens(rows, positions).short(), start, data.prompt_length, data.total_length, data.eos)
    rows, positions = _flat(data.total_length + 1)
    answer = positions - data.prompt_length[rows]
    commits = torch.where(answer >= 0, commit[rows, answer.clamp(min=0)], 0)
    return Trajectories(own, commits.short(), commit.amax(1))


def _flat(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Row and place in it of each entry of rows of ``lengths[N]``, one behind the other."""
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return rows, torch.arange(len(rows), device=lengths.device) - (lengths.cumsum(0) - lengths)[rows]


def trajectory_masks(commit: Tensor, last: Tensor, canvas: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """Masked positions at a random moment of each canvas's trajectory, and those among them to learn: ``[T]`` each.

    ``commit[T]`` and ``last[T]`` are passes, ``canvas[T]`` the canvas of each position.
    """
    luck = torch.rand(3, len(canvas), device=canvas.device)
    moment = (luck[0][canvas] * last).floor()
    noise = luck[1][canvas] * MOST_NOISE * progress
    masked = (commit > moment) | ((commit > 0) & (luck[2] < noise))
    window = FIRST_WINDOW + (LAST_WINDOW - FIRST_WINDOW) * progress
    return masked, masked & (commit <= moment + window)


def trajectory_lesson(config: ModelConfig, data: Trajectories, pack: Pack, progress: float, certainty: float) -> Lesson:
    """The tokens in the window, and ``certainty`` times the entropy of those that are predicted correctly."""
    masked, learned = trajectory_masks(data.commits(pack), data.last[pack.rows], pack.layout.canvas, progress)
    counts = pack.counts * learned
    counts = counts / counts.sum().clamp(min=1.0)
    return Lesson(pack.layout, hidden(config, pack, masked), pack.ids, counts, certainty * counts)


def main() -> None:
    parser = training_options(__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder with FAMILY.base.safetensors")
    parser.add_argument("--trajectory-seconds", type=float, default=60)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--certainty", type=float, default=0.1)
    args = parser.parse_args()
    task, device = TASKS[args.task], default_device()
    config, family = tiny_config(task, args.family), args.family
    dataset = training_set(task, family, args.problems, SEED + 1).to(device)
    torch.manual_seed(SEED + 1)
    base = load_file(args.base / f"{family}.base.safetensors", device=str(device))
    data = collect(config, as_deployed(base), dataset, args.trajectory_seconds)
    moments = Packer(task, data.dataset, args.packed)
    ratios = Packer(task, dataset, args.packed)
    loss = make_loss(config, device)
    answer_lengths = dataset.total_length - dataset.prompt_length

    def loss_of(current: Weights, progress: float) -> Tensor:
        on_trajectory = trajectory_lesson(config, data, moments.draw(), progress, args.certainty)
        pack = ratios.draw()
        return loss(current, on_trajectory) + loss(current, diffusion_lesson(config, pack, answer_lengths[pack.rows]))

    save = saver(args.out / f"{family}.final.safetensors")
    save(optimize(base, loss_of, args.seconds, args.rate, f"distill {family}", save))


if __name__ == "__main__":
    main()
