"""The tiny checkpoints' problems, tokenizers, masks, decoders and tensor names."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from d3llm_trt.build.tokenizer import convert_tokenizer
from d3llm_trt.model.config import FAMILIES, Family
from d3llm_trt.tokenizer import Tokenizer
from examples.tiny_d3llm.data import SHORT_CANVASES, make_dataset
from examples.tiny_d3llm.decode import MultiBlock, decode, low_confidence
from examples.tiny_d3llm.distill import NEVER, trajectory_masks
from examples.tiny_d3llm.export import export
from examples.tiny_d3llm.network import initial_weights, position_logits, tiny_config
from examples.tiny_d3llm.problems import is_exact, make_problems
from examples.tiny_d3llm.tokenizer import (
    TOKENIZER_FILES,
    checkpoint_dir,
    load_tokenizer,
    prompt_text,
    train_tokenizer,
    write_tokenizer,
)

OPERATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def test_worked_answers_are_right() -> None:
    for problem in make_problems(2000, 3, "train"):
        steps = OPERATION.findall(problem.answer)
        assert len(steps) >= 2 and int(steps[-1][3]) == problem.result
        for left, sign, right, result in steps:
            values = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
            assert int(result) == values.get(sign, int(left) / int(right))
        assert is_exact(problem.answer, problem) and not is_exact(problem.answer + "0", problem)


def test_held_out_problems_share_no_numbers_with_training() -> None:
    keys = [{(p.template, p.numbers) for p in make_problems(3000, 1, split)} for split in ("train", "heldout")]
    assert keys[0].isdisjoint(keys[1])
    assert make_problems(5, 1, "heldout") == make_problems(5, 1, "heldout")


@pytest.mark.parametrize("family", FAMILIES)
def test_committed_tokenizer_is_the_one_the_script_writes(family: Family, tmp_path: Path) -> None:
    write_tokenizer(family, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(TOKENIZER_FILES[family])
    assert load_tokenizer(family).get_vocab() == train_tokenizer(family).get_vocab()
    settings = "tokenizer_config.json"
    assert json.loads((tmp_path / settings).read_text()) == json.loads((checkpoint_dir(family) / settings).read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_training_prompts_are_the_runtimes_chats(family: Family, tmp_path: Path) -> None:
    convert_tokenizer(checkpoint_dir(family), tiny_config(family), tmp_path)
    runtime = Tokenizer.load(tmp_path)
    assert runtime is not None
    for problem in make_problems(50, 2, "train"):
        ids = load_tokenizer(family).encode(prompt_text(family, problem.question)).ids
        assert runtime.chat_ids([{"role": "user", "content": problem.question}]) == ids
        assert runtime.decode(runtime.encode(problem.answer)) == problem.answer


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_end_in_eos_and_fit_the_canvas(family: Family) -> None:
    data, end = make_dataset(family, make_problems(200, 4, "train")), tiny_config(family).eos_token_id
    assert (
        int(data.total_length.max()) <= SHORT_CANVASES[-1] and int((data.total_length - data.prompt_length).max()) <= 64
    )
    assert (data.total_length.diff() >= 0).all()
    for row, total in zip(data.ids, data.total_length, strict=True):
        assert (row[total:] == end).all() and row[total - 1] != end


def test_trajectory_masks_hide_the_future_only() -> None:
    commit = torch.tensor([[0, 0, 1, 3, 2, NEVER]]).short().repeat(64, 1)
    masked, learned = trajectory_masks(commit, 0.0)
    assert not masked[:, :2].any() and masked[:, 5].all()
    assert not (learned & ~masked).any() and not learned[:, 5].any()
    assert (masked[:, 3] >= masked[:, 4]).all() and (masked[:, 4] >= masked[:, 2]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_decoders_fill_the_answer(family: Family) -> None:
    config, weights = tiny_config(family), initial_weights(tiny_config(family), 0)
    prompts = torch.randint(0, 500, (2, 5), generator=torch.Generator().manual_seed(0))
    for rule in (low_confidence(3), MultiBlock(2, 40, 5.0, torch.device("cpu"))):
        decoded = decode(config, weights, prompts, 40, rule)
        before_end = (decoded.ids == config.eos_token_id).cumsum(1) == 0
        assert not (decoded.ids[before_end] == config.mask_token_id).any()
        assert (decoded.commit.amax(1) == decoded.passes).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_of_training_has_a_gradient(family: Family) -> None:
    config, weights = tiny_config(family), initial_weights(tiny_config(family), 0)
    leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
    logits = position_logits(config, leaves, torch.arange(40).view(2, 20), torch.tensor([3, 25, 39]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an operation without one only warns
        logits.square().mean().backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_export_writes_the_published_files(family: Family, tmp_path: Path) -> None:
    from safetensors import safe_open

    config = tiny_config(family)
    export(config, initial_weights(config, 0), tmp_path)
    expected = {
        "llada": ("model.transformer.blocks.3.ff_proj.weight", "model.transformer.ff_out.weight"),
        "dream": ("model.layers.3.self_attn.k_proj.bias", "lm_head.weight"),
    }[family]
    with safe_open(tmp_path / "model.safetensors", "pt") as tensors:
        assert set(expected) <= set(tensors.keys())
        assert tensors.get_tensor(expected[0]).dtype == torch.bfloat16
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"] == [{"llada": "LLaDAModelLM", "dream": "DreamModel"}[family]]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8 << 20
