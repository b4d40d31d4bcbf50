"""The tiny checkpoints' problems, tokenizers, lengths and tensor names."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from d3llm_trt.build.tokenizer import convert_tokenizer
from d3llm_trt.model.config import FAMILIES, Family
from d3llm_trt.tokenizer import Tokenizer
from examples.tiny_d3llm.chains import DIGITS, LEAST, MOST
from examples.tiny_d3llm.data import make_dataset
from examples.tiny_d3llm.export import export
from examples.tiny_d3llm.network import initial_weights, tiny_config
from examples.tiny_d3llm.problems import is_exact
from examples.tiny_d3llm.tasks import TASKS, YARDSTICK, Task
from examples.tiny_d3llm.tokenizer import (
    TOKENIZER_FILES,
    checkpoint_dir,
    load_tokenizer,
    prompt_text,
    train_tokenizer,
    write_tokenizer,
)

OPERATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
each_family = pytest.mark.parametrize("family", FAMILIES)


@each_task
def test_worked_answers_are_right(task: Task) -> None:
    for problem in task.problems(2000, 3, "train"):
        steps = OPERATION.findall(problem.answer)
        assert steps and int(steps[-1][3]) == problem.result
        for left, sign, right, result in steps:
            values = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
            assert int(result) == values.get(sign, int(left) / int(right))
        assert is_exact(problem.answer, problem) and not is_exact(problem.answer + "0", problem)


@each_task
def test_held_out_problems_share_no_numbers_with_training(task: Task) -> None:
    keys = [{(p.template, p.numbers) for p in task.problems(3000, 1, split)} for split in ("train", "heldout")]
    assert keys[0].isdisjoint(keys[1])
    assert task.problems(5, 1, "heldout") == task.problems(5, 1, "heldout")


def test_every_step_of_a_chain_starts_from_the_result_before() -> None:
    for problem in YARDSTICK.problems(1000, 5, "heldout"):
        lines = problem.answer.splitlines()[:-1]
        totals = [OPERATION.findall(line) for line in lines]
        chains = [steps[1:] if problem.template == "market" else steps for steps in totals]
        for before, after in itertools.pairwise(step for steps in chains for step in steps):
            assert after[0] == before[3]
        assert 4 <= len(lines) <= 8 and all(LEAST <= int(step[3]) <= MOST for steps in chains for step in steps)


def test_chains_look_up_what_the_question_says() -> None:
    for problem in YARDSTICK.problems(1000, 6, "train"):
        lines = problem.answer.splitlines()[:-1]
        if problem.template == "rooms":
            for line in lines:
                room, verb, digit, sign, amount = re.findall(r"Room (\w+) (\w+) \d+: \d*(\d) ([-+]) (\d+)", line)[0]
                assert f"Room {room} {verb} {amount}." in problem.question and DIGITS[int(digit)] == room
                assert (verb == "has") == (sign == "+")
        if problem.template == "days":
            for line in lines:
                day, total, side, limit, sign, amount = re.findall(
                    r"(\w+): (\d+) is (above|below) (\d+), so \d+ ([-+]) (\d+)", line
                )[0]
                rule = re.findall(rf"{day}: above (\d+) sell (\d+), below make (\d+)", problem.question)[0]
                assert limit == rule[0] and amount == rule[1 if side == "above" else 2]
                assert (int(total) > int(limit)) == (side == "above") == (sign == "-")


@each_family
def test_chains_have_the_lengths_that_a_yardstick_needs(family: Family) -> None:
    data = make_dataset(YARDSTICK, family, YARDSTICK.problems(1000, 8, "heldout"))
    answers = data.total_length - data.prompt_length
    assert int(answers.min()) >= 95 and int(answers.max()) <= 220 and 300 <= int(data.prompt_length.max()) <= 450
    assert int(data.prompt_length.max()) + YARDSTICK.answer_positions <= YARDSTICK.max_positions


@each_task
@each_family
def test_committed_tokenizer_is_the_one_the_script_writes(task: Task, family: Family, tmp_path: Path) -> None:
    write_tokenizer(task, family, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(TOKENIZER_FILES[family])
    assert load_tokenizer(task, family).get_vocab() == train_tokenizer(task, family).get_vocab()
    name = "tokenizer_config.json"
    assert json.loads((tmp_path / name).read_text()) == json.loads((checkpoint_dir(task, family) / name).read_text())


@each_task
@each_family
def test_training_prompts_are_the_runtimes_chats(task: Task, family: Family, tmp_path: Path) -> None:
    convert_tokenizer(checkpoint_dir(task, family), tiny_config(task, family), tmp_path)
    runtime = Tokenizer.load(tmp_path)
    assert runtime is not None
    for problem in task.problems(50, 2, "train"):
        ids = load_tokenizer(task, family).encode(prompt_text(family, problem.question)).ids
        assert runtime.chat_ids([{"role": "user", "content": problem.question}]) == ids
        assert runtime.decode(runtime.encode(problem.answer)) == problem.answer


@each_task
@each_family
def test_export_writes_the_published_files(task: Task, family: Family, tmp_path: Path) -> None:
    from safetensors import safe_open

    export(task, family, initial_weights(tiny_config(task, family), 0), tmp_path)
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
