"""Quick accuracy of weights in training, with the packed decoders. The official numbers are evaluate.py's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from d3llm_trt.model.config import FAMILIES, Family, ModelConfig
from examples.tiny_d3llm.data import Dataset, make_dataset
from examples.tiny_d3llm.decode import Decoded, MultiBlock, Rule, decode, low_confidence
from examples.tiny_d3llm.network import Weights, as_deployed, tiny_config
from examples.tiny_d3llm.tasks import TASKS, Task
from examples.tiny_d3llm.train import default_device

HELDOUT_SEED = 100
AT_A_TIME = 512  # problems decoded together
THRESHOLDS = (0.1, 0.2, 0.4, 0.5, 0.7)
RuleMaker = Callable[[int, int], Rule]  # (batch, answer positions) -> rule


def parts(dataset: Dataset) -> Iterator[Dataset]:
    """The problems, so many at a time."""
    for rows in torch.arange(len(dataset.start), device=dataset.ids.device).split(AT_A_TIME):
        yield dataset.rows(rows)


def exact_rows(config: ModelConfig, problems: Dataset, decoded: Decoded) -> Tensor:
    """Which answers equal the worked answer, token for token up to its first EOS."""
    batch, count = decoded.ids.shape
    at = torch.arange(count, device=decoded.ids.device)
    wanted = problems.tokens(torch.arange(batch, device=at.device)[:, None], problems.prompt_length[:, None] + at)
    ended = (wanted == config.eos_token_id).cumsum(1) > 1
    return ((decoded.ids == wanted) | ended).all(1)


def measure(
    config: ModelConfig, weights: Weights, dataset: Dataset, count: int, make_rule: RuleMaker
) -> dict[str, float]:
    """Share of exact answers, tokens before EOS per forward pass, and forward passes per answer."""
    exact = tokens = passes = 0
    for problems in parts(dataset):
        decoded = decode(config, weights, problems, count, make_rule(len(problems.start), count))
        ended = (decoded.ids == config.eos_token_id).cumsum(1) > 0
        exact += int(exact_rows(config, problems, decoded).sum())
        tokens += int((~ended).sum())
        passes += int(decoded.passes.sum())
    total = len(dataset.start)
    return {"exact": exact / total, "tokens_per_forward": tokens / passes, "forward_passes": passes / total}


def check(task: Task, family: Family, weights: Weights, problems: int, count: int) -> dict[str, dict[str, float]]:
    """LowConfidence, and FullAttnMultiBlock at a few thresholds, on held-out problems in bfloat16."""
    config, device = tiny_config(task, family), default_device()
    deployed = as_deployed({name: weight.to(device) for name, weight in weights.items()})
    dataset = make_dataset(task, family, task.problems(problems, HELDOUT_SEED, "heldout")).to(device)
    makers: dict[str, RuleMaker] = {"LowConfidence": lambda *_: low_confidence(1)}
    makers |= {f"FullAttnMultiBlock {threshold}": _multi_block(threshold, device) for threshold in THRESHOLDS}
    return {name: measure(config, deployed, dataset, count, make) for name, make in makers.items()}


def _multi_block(threshold: float, device: torch.device) -> RuleMaker:
    return lambda batch, count: MultiBlock(batch, count, threshold, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=list(TASKS), default="tiny-d3llm")
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="packed weights that a training stage wrote")
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = check(TASKS[args.task], args.family, load_file(args.weights), args.problems, args.max_tokens)
    for name, numbers in results.items():
        print(f"check {args.family}: {name}: {numbers}", flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
