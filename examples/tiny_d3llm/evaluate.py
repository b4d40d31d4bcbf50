"""Accuracy and tokens per forward pass of the finished checkpoints on held-out problems, through the public API.

``python -m examples.tiny_d3llm.evaluate --output benchmarks/results/tiny_d3llm.json``
``python -m examples.tiny_d3llm.evaluate --task yardstick --algorithm MultiBlock --thresholds 0.1 0.3 0.5
--problems 1000 --max-tokens 256 --max-batch-size 32 --output benchmarks/results/yardstick.json``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch

from d3llm_trt import LLM, BuildConfig, DecodingConfig, RequestOutput, SamplingParams, build_engine
from d3llm_trt.config import QUANTIZATIONS
from d3llm_trt.model.config import FAMILIES, Family
from d3llm_trt.runtime.stepping.policy import CUDA_GRAPHS
from examples.tiny_d3llm.check import HELDOUT_SEED
from examples.tiny_d3llm.problems import Problem, is_exact
from examples.tiny_d3llm.tasks import TASKS
from examples.tiny_d3llm.tokenizer import checkpoint_dir

DEVIATIONS = 1.96  # of a normal distribution, within which 95 % of it lie


def decodings(thresholds: Sequence[float], algorithm: str = "FullAttnMultiBlock") -> dict[str, DecodingConfig]:
    """The vanilla baseline, then multi-block decoding at each threshold."""
    chosen = {"LowConfidence": DecodingConfig(algorithm="LowConfidence", block_size=32)}
    for threshold in thresholds:
        chosen[f"{algorithm} {threshold}"] = DecodingConfig(
            algorithm=algorithm,
            block_size=32,
            threshold=threshold,
            block_add_threshold=0.1,
            decoded_token_threshold=0.95,
        )
    return chosen


def interval(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share."""
    share, spread = successes / count, DEVIATIONS**2 / count
    middle = (share + spread / 2) / (1 + spread)
    reach = (spread * (share * (1 - share) + spread / 4)) ** 0.5 / (1 + spread)
    return middle - reach, middle + reach


def summary(problems: Sequence[Problem], outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """Exact final results, the whole answer word for word, tokens per forward pass, and wrong answers to read."""
    texts = [output.outputs[0].text for output in outputs]
    wrong = [(p, text) for p, text in zip(problems, texts, strict=True) if not is_exact(text, p)]
    same = sum(text.strip() == p.answer for p, text in zip(problems, texts, strict=True))
    passes = sum(output.metrics.num_forward_passes for output in outputs)
    tokens = sum(output.metrics.tokens_per_forward * output.metrics.num_forward_passes for output in outputs)
    return {
        "problems": len(problems),
        "exact": 1 - len(wrong) / len(problems),
        "exact_interval": interval(len(problems) - len(wrong), len(problems)),
        "same_text": same / len(problems),
        "tokens_per_forward": tokens / passes,
        "forward_passes": passes / len(problems),
        "digest": digest(outputs),
        "wrong": [{"question": p.question, "answer": p.answer, "generated": text} for p, text in wrong[:5]],
    }


def digest(outputs: Sequence[RequestOutput]) -> str:
    """Of all generated ids: equal where every token is."""
    return hashlib.sha256(json.dumps([output.outputs[0].token_ids for output in outputs]).encode()).hexdigest()[:16]


def evaluate(llm: LLM, problems: Sequence[Problem], decoding: DecodingConfig, max_tokens: int) -> dict[str, Any]:
    """Decode every problem as a chat."""
    chats = [[{"role": "user", "content": problem.question}] for problem in problems]
    outputs = llm.generate(chats, SamplingParams(max_tokens=max_tokens, decoding=decoding))
    return summary(problems, outputs)


@contextmanager
def open_model(family: Family, args: argparse.Namespace) -> Iterator[LLM]:
    """The checkpoint of a family, built as the command line says."""
    config = BuildConfig(quantization=args.quantization, max_batch_size=args.max_batch_size)
    checkpoint = checkpoint_dir(TASKS[args.task], family)
    with tempfile.TemporaryDirectory() as folder:
        engine = build_engine(checkpoint, Path(folder) / "engine", config)
        with LLM(engine, cuda_graphs=args.cuda_graphs) as llm:
            yield llm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="tiny-d3llm")
    parser.add_argument("--algorithm", choices=("FullAttnMultiBlock", "MultiBlock"), default="FullAttnMultiBlock")
    parser.add_argument("--families", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[96, 256])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.4, 0.5])
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--quantization", choices=QUANTIZATIONS)
    parser.add_argument("--cuda-graphs", choices=CUDA_GRAPHS)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    result: dict[str, Any] = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
    result |= {"heldout_seed": HELDOUT_SEED, "quantization": args.quantization, "cuda_graphs": args.cuda_graphs}
    problems = TASKS[args.task].problems(args.problems, HELDOUT_SEED, "heldout")
    chosen = decodings(args.thresholds, args.algorithm)
    for family in args.families:
        result[family] = {}
        with open_model(family, args) as llm:
            for (name, decoding), tokens in product(chosen.items(), args.max_tokens):
                numbers = evaluate(llm, problems, decoding, tokens)
                title = f"{name}, max_tokens {tokens}"
                result[family][title] = numbers
                rates = f"TPF {numbers['tokens_per_forward']:.2f}, passes {numbers['forward_passes']:.1f}"
                print(f"{family}: {title}: exact {numbers['exact']:.3f}, {rates}", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
