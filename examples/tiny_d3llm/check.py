"""Quick accuracy of weights in training, with the dense decoders. The official numbers are evaluate.py's."""

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
from examples.tiny_d3llm.problems import make_problems
from examples.tiny_d3llm.train import default_device

HELDOUT_SEED = 100
RuleMaker = Callable[[int, int], Rule]  # (batch, answer positions) -> rule


def by_prompt_length(dataset: Dataset, largest: int = 1024) -> Iterator[Dataset]:
    """The rows of each prompt length, at most ``largest`` at a time."""
    for length in dataset.prompt_length.unique().tolist():
        for rows in (dataset.prompt_length == length).nonzero()[:, 0].split(largest):
            yield dataset.rows(rows)


def decode_group(config: ModelConfig, weights: Weights, group: Dataset, count: int, make_rule: RuleMaker) -> Decoded:
    """Decode rows of one prompt length."""
    prompts = group.ids[:, : int(group.prompt_length[0])].long()
    return decode(config, weights, prompts, count, make_rule(len(prompts), count))


def exact_rows(config: ModelConfig, group: Dataset, decoded: Decoded) -> Tensor:
    """Which answers equal the worked answer, token for token up to its first EOS."""
    start, count = int(group.prompt_length[0]), decoded.ids.shape[1]
    wanted = group.ids[:, start : start + count].long()
    ended = (wanted == config.eos_token_id).cumsum(1) > 1
    return ((decoded.ids == wanted) | ended[:, : wanted.shape[1]]).all(1)


def measure(
    config: ModelConfig, weights: Weights, dataset: Dataset, count: int, make_rule: RuleMaker
) -> dict[str, float]:
    """Share of exact answers, and tokens before EOS per forward pass."""
    exact = tokens = passes = 0
    for group in by_prompt_length(dataset):
        decoded = decode_group(config, weights, group, count, make_rule)
        ended = (decoded.ids == config.eos_token_id).cumsum(1) > 0
        exact += int(exact_rows(config, group, decoded).sum())
        tokens += int((~ended).sum())
        passes += int(decoded.passes.sum())
    return {"exact": exact / len(dataset.ids), "tokens_per_forward": tokens / passes}


def check(
    family: Family, weights: Weights, problems: int, counts: tuple[int, ...] = (96,)
) -> dict[str, dict[str, float]]:
    """LowConfidence, and FullAttnMultiBlock at a few thresholds, on held-out problems in bfloat16."""
    config, device = tiny_config(family), default_device()
    deployed = as_deployed({name: weight.to(device) for name, weight in weights.items()})
    dataset = make_dataset(family, make_problems(problems, HELDOUT_SEED, "heldout")).to(device)
    results: dict[str, dict[str, float]] = {}
    for count in counts:
        name = f"max_tokens {count}"
        one = low_confidence(1)
        results[f"LowConfidence, {name}"] = measure(config, deployed, dataset, count, lambda *_, one=one: one)
        for threshold in (0.2, 0.4, 0.5, 0.7):
            make = _multi_block(threshold, device)
            results[f"FullAttnMultiBlock {threshold}, {name}"] = measure(config, deployed, dataset, count, make)
    return results


def _multi_block(threshold: float, device: torch.device) -> RuleMaker:
    return lambda batch, count: MultiBlock(batch, count, threshold, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="packed weights that a training stage wrote")
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[96])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = check(args.family, load_file(args.weights), args.problems, tuple(args.max_tokens))
    for name, numbers in results.items():
        print(f"check {args.family}: {name}: {numbers}", flush=True)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
