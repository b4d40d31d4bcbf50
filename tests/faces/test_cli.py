"""The command line: its defaults, its exit codes, and one line for everything a user can get wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import d3llm_trt
import d3llm_trt.cli.inspect
from d3llm_trt import build_engine
from d3llm_trt.tokenizer import Tokenizer
from tests.support.command import COMMAND, assert_one_line, rows, run
from tests.support.golden_cases import GOLDEN
from tests.support.tiny_models import CHECKPOINTS, QUESTIONS
from tests.support.tiny_tokenizers import model_config

QUESTION = next(iter(QUESTIONS))


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without a tokenizer."""
    return build_engine(GOLDEN / "llada_tiny", tmp_path_factory.mktemp("engine") / "mute")


# Start and end of the process


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    check = (
        "import sys, click.testing, d3llm_trt.cli.main as c;"
        "out = [click.testing.CliRunner().invoke(c.cli, [*a, '--help']).output for a in ([], ['generate'], ['build'])];"
        "assert all('--help' in o for o in out);"
        "print([m for m in ('torch', 'tokenizers', 'rich', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", check], text=True).strip() == "[]"
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.5


@pytest.mark.parametrize("args", [["--help"], ["generate", "--help"], ["--version"]])
def test_closed_pipe_ends_quietly(args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, *args], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode in (1, 141) and done.stderr == b""


def test_version_and_defaults_are_shown() -> None:
    assert d3llm_trt.__version__ in run("--version").stdout
    text = " ".join(run("generate", "-h").stdout.split())
    for shown in ("[default: 256]", "[default: 0.95]", "[default: off]", "[default: FullAttnMultiBlock]"):
        assert shown in text


def test_interrupt_ends_quickly_and_says_130(engine: Path) -> None:
    slow = ["--max-tokens", "400", "--algorithm", "LowConfidence", "--ignore-eos", "--watch"]
    process = subprocess.Popen([*COMMAND, "generate", str(engine), QUESTION, *slow], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("pass 1")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in rest


# Bad input


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["generate", "missing", "x"], ["missing: no such directory; give an engine or a checkpoint directory"]),
        (["generate"], ["Missing argument 'MODEL'", "d3llm-trt generate --help"]),
        (["generate", "model", "x", "--max-tokens", "many"], ["--max-tokens", "'many'"]),
        (["generate", "model", "x", "--max-tokens", "-1"], ["max_tokens is -1", "0 or more"]),
        (["generate", "model", "x", "--threshold", "low"], ["--threshold", "'low'", "auto or none"]),
        (["generate", "model", "x", "--threshold", "nan"], ["threshold is nan"]),
        (["generate", "model", "x", "--algorithm", "Magic"], ["'Magic'", "EntropyThreshold"]),
        (["generate", "model", "x", "--steps", "3"], ["steps is 3", "only LowConfidence"]),
        (["generate", "model", "x", "--block-size", "0"], ["block_size is 0"]),
        (["generate", "model", "x", "--decoding", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["generate", "model", "x", "--trace", "a.gif"], ["a.gif", ".png or .html"]),
        (["generate", "model", "x", "y", "--watch"], ["one prompt", "2 are given"]),
        (["generate", "model", "x", "--system", "s", "--raw"], ["--system", "leave out --raw"]),
        (["generate", "model"], ["standard input is empty"]),
        (["generate", "model", "-", "-"], ["given twice"]),
        (["generate", "model", "--file", "nowhere.txt"], ["nowhere.txt", "cannot be read"]),
        (["build", "checkpoint"], ["Missing option '--output'"]),
        (["build", "checkpoint", "-o", "x", "--dtype", "int3"], ["'int3'", "bfloat16"]),
        (["build", "checkpoint", "-o", "x", "--max-batch-size", "0"], ["max_batch_size is 0"]),
        (["--nonsense"], ["--nonsense"]),
        (["nonsense"], ["nonsense"]),
    ],
)
def test_bad_input_is_one_line(args: list[str], parts: list[str]) -> None:
    assert_one_line(run(*args), *parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("p.jsonl", b'{"prompt": 2}\n{"prompt": 1}\n', ["p.jsonl:1", "prompt is 2", "a text", "none of the 2 prompts"]),
        ("p.jsonl", b"\n{", ["p.jsonl:2", "not valid JSON"]),
        ("p.jsonl", b'{"text": "a"}', ["p.jsonl:1", "messages, prompt_token_ids"]),
        ("p.jsonl", b'{"prompt": "a", "messages": []}', ["p.jsonl:1", "one key"]),
        ("p.jsonl", b'{"messages": ["a"]}', ["messages is", "a list of messages"]),
        ("p.jsonl", b'{"prompt_token_ids": [1, true]}', ["prompt_token_ids[1] is True"]),
        ("p.txt", b"\n \n", ["holds no prompt"]),
        ("p.txt", b"a\xffb", ["not UTF-8 at byte 1"]),
    ],
)
def test_bad_prompt_files_are_one_line(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    assert_one_line(run("generate", "model", "--file", tmp_path / name), *parts)


def test_chat_options_need_a_tokenizer(mute: Path) -> None:
    assert_one_line(run("generate", mute, "x", "--chat"), "--chat needs a tokenizer")
    assert_one_line(run("generate", mute, "x", "--system", "s"), "--system needs a tokenizer")
    assert_one_line(run("generate", mute, "x"), "has no tokenizer", "prompt_token_ids")


def test_graphs_need_an_engine_that_can_be_captured(engine: Path) -> None:
    assert_one_line(run("generate", engine, "x", "--device", "cpu", "--cuda-graphs", "all"), "cuda_graphs is 'all'")


def test_an_option_of_a_plan_counts_even_if_it_is_zero(tmp_path: Path) -> None:
    result = run("build", CHECKPOINTS["llada"], "-o", tmp_path / "engine", "--optimization-level", "0")
    assert_one_line(result, "optimization_level is 0, which the torch backend does not use")


def test_names_that_are_too_long_are_one_line(engine: Path, tmp_path: Path) -> None:
    for args in (
        ["generate", "why " * 100, "x"],
        ["inspect", "a" * 300],
        ["build", CHECKPOINTS["llada"], "-o", "a" * 300],
    ):
        assert_one_line(run(*args), "File name too long")


@pytest.mark.parametrize("name", ["d.json", "d.yaml", "p.jsonl"])
def test_files_nested_too_deeply_are_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("[" * 100_000)
    option = "--file" if name == "p.jsonl" else "--decoding"
    assert_one_line(run("generate", "model", "x", option, tmp_path / name), "not valid")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_and_closed_streams_are_no_tracebacks(engine: Path) -> None:
    for command, code in (
        (f"inspect {engine} > /dev/full", 2),
        (f"inspect {engine} >&-", 2),
        ("--help >&-", 2),
        (f"inspect {engine} 1< /dev/null", 2),
        (f"generate {engine} hi --max-tokens 4 2>&-", 0),
    ):
        python = f"{sys.executable} -c 'from d3llm_trt.cli.main import main; main()'"
        done = subprocess.run(["bash", "-c", f"{python} {command}"], capture_output=True, text=True)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_lone_surrogates_survive_as_json(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "\\ud800"}')
    result = run("generate", engine, "--raw", "--json", "--file", tmp_path / "p.jsonl")
    assert json.loads(result.stdout)["prompt"] == "\ud800" and result.exit_code == 2


# Prompts and settings


def prompts_of(engine: Path, *args: str | Path, stdin: str | None = None) -> list[str]:
    """The prompts as the model saw them."""
    tokenizer = Tokenizer.load(engine)
    assert tokenizer is not None
    output = rows(run("generate", engine, "--max-tokens", "2", "--json", *args, stdin=stdin))
    return [tokenizer.decode(row["prompt_token_ids"], skip_special_tokens=False) for row in output]


def as_llada_chat(text: str, system: str | None = None) -> str:
    parts = [("user", text)] if system is None else [("system", system), ("user", text)]
    turns = (f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>" for role, content in parts)
    return "<|startoftext|>" + "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_prompts_come_from_arguments_and_files(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\nsecond\n")
    assert prompts_of(engine, "zero", "--raw", "--file", tmp_path / "a.txt") == ["zero", "first", "second"]


def test_jsonl_prompts_have_three_forms(engine: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    lines: list[dict[str, Any]] = [{"prompt": "a\nb"}, {"messages": messages}, {"prompt_token_ids": [1, 2]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    seen = prompts_of(engine, "--file", tmp_path / "a.jsonl")
    assert seen[:2] == [as_llada_chat("a\nb"), as_llada_chat("hi")] and len(seen) == 3


@pytest.mark.parametrize("args", [[], ["-"]])
def test_standard_input_is_one_prompt(engine: Path, args: list[str]) -> None:
    assert prompts_of(engine, "--raw", *args, stdin="two\nlines\n") == ["two\nlines"]


def test_text_is_a_chat_by_default_when_the_model_can(engine: Path) -> None:
    assert prompts_of(engine, "hi") == [as_llada_chat("hi")]
    assert prompts_of(engine, "hi", "--system", "be nice") == [as_llada_chat("hi", "be nice")]
    assert prompts_of(engine, "hi", "--raw") == ["hi"]


def test_options_override_the_decoding_file(engine: Path, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("algorithm: LowConfidence\nsteps: 5\nblock_size: 40\n")
    args = ["generate", engine, QUESTION, "--max-tokens", "40", "--json", "--decoding", tmp_path / "d.yaml"]
    whole = [*args, "--no-early-stop", "--ignore-eos"]
    (row,) = rows(run(*whole))
    assert row["metrics"]["num_forward_passes"] == 5
    (row,) = rows(run(*whole, "--steps", "8"))
    assert row["metrics"]["num_forward_passes"] == 8
    assert_one_line(run(*args, "--algorithm", "MultiBlock"), "steps is 5")


def test_a_byte_order_mark_before_settings_means_nothing(engine: Path, tmp_path: Path) -> None:
    for name, text in (("d.yaml", "block_size: 8"), ("d.json", '{"block_size": 8}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        options = ["--max-tokens", "8", "--json", "--decoding", tmp_path / name]
        assert rows(run("generate", engine, QUESTION, *options))


def test_stop_options(engine: Path) -> None:
    args = ["generate", engine, QUESTION, "--json", "--stop", "####", "--stop", "away,"]
    (row,) = rows(run(*args))
    assert row["stop_reason"] == "away," and row["text"].endswith("After giving 15 ")


def test_engine_options_reach_the_engine(engine: Path) -> None:
    for option, value, part in (
        ("--dtype", "float32", "built with 'bfloat16'"),
        ("--max-batch-size", "99", "max_batch_size is 99"),
        ("--device", "tpu", "device is 'tpu'"),
    ):
        assert_one_line(run("generate", engine, "x", option, value), part)


# Answers


def test_text_goes_to_stdout_and_statistics_to_stderr(engine: Path) -> None:
    result = run("generate", engine, *QUESTIONS)
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if "####" in line] == [f"#### {n}" for n in QUESTIONS.values()]
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(re.fullmatch(r"\d+ forward passes, \d+ tokens, \d+\.\d\d TPF, \d+\.\d\d s", line) for line in lines)


def test_json_is_one_object_per_prompt(engine: Path) -> None:
    result = run("generate", engine, QUESTION, "x" * 3000, "--json")
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert result.exit_code == 1 and (first["index"], second["index"]) == (0, 1)
    assert first["text"].endswith("#### 57") and len(first["commit_steps"]) == len(first["token_ids"])
    assert first["error"] is None and first["metrics"]["tokens_per_forward"] > 3
    assert second["finish_reason"] == "error" and "max_seq_len" in second["error"]


def test_one_failure_leaves_the_others_alone(engine: Path) -> None:
    result = run("generate", engine, QUESTION, "x" * 3000, QUESTION)
    assert result.exit_code == 1
    assert result.stdout.count("#### 57") == 2
    assert result.stderr.count("error: prompt 2: ") == 1
    assert_one_line(run("generate", engine, "x" * 3000), "prompt 1")


def test_watch_and_trace(engine: Path, tmp_path: Path) -> None:
    result = run("generate", engine, QUESTION, "--max-tokens", "64", "--watch", "--trace", tmp_path / "t.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("#### 57\n") and "64 of 64 tokens" in result.stderr
    assert 'data-pass="1"' in (tmp_path / "t.html").read_text()


# Build and inspect


def test_build_prints_facts_and_never_overwrites_unasked(tmp_path: Path) -> None:
    args = ["build", CHECKPOINTS["dream"], "-o", tmp_path / "e", "--dtype", "float32", "--max-seq-len", "64"]
    result = run(*args)
    assert result.exit_code == 0, result.output
    for line in ("kind .* engine", "dtype .* float32", "max seq len .* 64", "family .* dream"):
        assert re.search(line, result.stdout)
    assert_one_line(run(*args), "there is an engine already", "--overwrite")
    (facts,) = rows(run(*args, "--overwrite", "--json"))
    assert facts["kind"] == "engine" and facts["max_seq_len"] == 64
    (verified,) = rows(run("inspect", tmp_path / "e", "--verify", "--json"))
    assert verified == {**facts, "verified": True}
    (checkpoint,) = rows(run("inspect", CHECKPOINTS["dream"], "--json"))
    assert checkpoint["kind"] == "checkpoint" and checkpoint["parameters"] == facts["parameters"]


def test_plans_are_built_and_inspected(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    args = ["build", CHECKPOINTS["dream"], "-o", tmp_path / "e", "--backend", "tensorrt-rtx", "--max-seq-len", "128"]
    result = run(*args, "--token-buckets", "64,128", "--compute-capabilities", "8.9", "--attention-mask", "explicit")
    assert result.exit_code == 0, result.output
    assert re.match(r"at run time: weights .* KV cache .* on disk: .* memory to build: ", result.stderr)
    (facts,) = rows(run("inspect", tmp_path / "e", "--json"))
    assert (facts["attention"], facts["attention_mask"]) == ("native", "explicit")
    assert facts["token_buckets"] == [64, 128] and facts["optimization_profiles"] == 4
    assert facts["compute_capabilities"] == ["8.9"] and facts["files"][0] == "rank0.engine"
    assert_one_line(run("generate", tmp_path / "e", "hi", "--device", "cpu"), "needs an NVIDIA GPU")
    if not torch.cuda.is_available():
        assert_one_line(run("inspect", tmp_path / "e", "--layers"), "--layers needs a plan, and an NVIDIA GPU")


def test_options_of_another_backend_are_one_line(tmp_path: Path) -> None:
    args = ["build", CHECKPOINTS["dream"], "-o", tmp_path / "e"]
    assert_one_line(run(*args, "--token-buckets", "64"), "token_buckets is (64,)", "choose a tensorrt backend")
    assert_one_line(run(*args, "--backend", "tensorrt-rtx", "--token-buckets", "a"), "'a' is not a list of int")
    assert_one_line(run(*args, "--backend", "tensorrt-rtx", "--attention", "plugin"), "attention is 'plugin'")


def test_a_bad_checkpoint_is_one_line(tmp_path: Path) -> None:
    assert_one_line(run("build", tmp_path, "-o", tmp_path / "e"), "config.json: cannot be read")


def test_inspect_needs_a_directory_and_verify_needs_an_engine(tmp_path: Path) -> None:
    assert_one_line(run("inspect", tmp_path / "none"), "none: no such directory")
    assert_one_line(run("inspect", tmp_path, "--verify"), "leave out --verify")


def test_model_facts_count_parameters_and_cache() -> None:
    facts = d3llm_trt.cli.inspect.model_facts(model_config("dream"), "bfloat16")
    config = model_config("dream")
    per_layer = 96 * 32 + 96 + 32 * 32 + 3 * 64 * 32 + 2 * 32
    assert facts["parameters"] == 2 * config.vocab_size * 32 + per_layer + 32
    assert facts["kv_bytes_per_token"] == 2 * 2 * 16 * 2
    assert facts["family"] == "dream" and facts["num_layers"] == 1


def test_facts_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    facts = {
        "size": 3 << 30,
        "parameters": 8015581184,
        "tokenizer": True,
        "files": ["a", "b"],
        "kv_bytes_per_token": 96,
    }
    d3llm_trt.cli.inspect.print_facts(facts, as_json=False)
    lines = [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["3 GiB", "8,015,581,184", "yes", "a, b", "96 bytes"]
