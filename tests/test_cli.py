"""The command line: its defaults, its exit codes, and one line for everything a user can get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_tokenizers import model_config, write_tokenizer

import d3llm_trt
import d3llm_trt.inspection
from d3llm_trt.build.tokenizer import convert_tokenizer
from d3llm_trt.cli import cli
from d3llm_trt.config import BuildConfig
from d3llm_trt.errors import EngineError, RequestError
from d3llm_trt.runtime.outputs import Canvas, CompletionOutput, RequestMetrics, RequestOutput
from d3llm_trt.runtime.sampling_params import SamplingParams
from d3llm_trt.runtime.tokenizer import Tokenizer

COMMAND = [sys.executable, "-c", "from d3llm_trt.cli import main; main()"]


def run(*args: str | Path, stdin: bytes | str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin, prog_name="d3llm-trt")


def assert_one_line(result: Result, *parts: str, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
    for part in parts:
        assert part in result.stderr
    assert not result.stdout


class FakeLLM:
    """Says what it was asked. A prompt that contains "fail" fails."""

    calls: tuple[list[Any], SamplingParams] = ([], SamplingParams())
    options: dict[str, Any]
    tokenizer: Tokenizer | None = None
    closed = False

    def __init__(self, model: str, **options: Any) -> None:
        if model == "missing":
            raise EngineError("missing: no such directory;\ngive an engine or checkpoint directory")
        type(self).options, type(self).closed = options, False

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        type(self).closed = True

    def generate(self, prompts: list[Any], params: SamplingParams, use_tqdm: bool) -> list[RequestOutput]:
        type(self).calls = (prompts, params)
        if prompts == ["interrupt"]:
            raise KeyboardInterrupt
        return [self.answer(index, prompt) for index, prompt in enumerate(prompts)]

    def generate_stream(self, prompt: Any, params: SamplingParams, canvas: bool) -> Iterator[RequestOutput]:
        assert canvas
        yield self.answer(0, prompt, Canvas([5, 39, 40], [-1, 0, 0], 1), finished=False)
        yield self.answer(0, prompt, Canvas([5, 39, 40], [-1, 1, 1], 1))

    def answer(self, index: int, prompt: Any, canvas: Canvas | None = None, finished: bool = True) -> RequestOutput:
        error = RequestError("prompt is bad;\nallowed: good") if "fail" in str(prompt) else None
        answer = CompletionOutput(0, "" if error else f"answer {index}", [39, 40], [1, 1], "error" if error else "stop")
        metrics = RequestMetrics(1, 2.0, 0.1, 0.25)
        return RequestOutput(str(index), str(prompt), [5], [answer], finished, metrics, error, canvas)


@pytest.fixture(autouse=True)
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("d3llm_trt.runtime.llm")
    module.LLM = FakeLLM  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "d3llm_trt.runtime.llm", module)
    monkeypatch.setattr(FakeLLM, "tokenizer", None)


@pytest.fixture
def with_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path, "dream")
    (tmp_path / "engine").mkdir()
    convert_tokenizer(tmp_path, model_config("dream"), tmp_path / "engine")
    monkeypatch.setattr(FakeLLM, "tokenizer", Tokenizer.load(tmp_path / "engine"))


# Start and end of the process


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    check = (
        "import sys, click.testing, d3llm_trt.cli as c;"
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


def test_interrupt_shuts_down_and_says_130() -> None:
    result = run("generate", "model", "interrupt")
    assert result.exit_code == 130 and FakeLLM.closed
    assert "Traceback" not in result.output


# Bad input


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["generate", "missing", "x"], ["missing: no such directory; give an engine"]),
        (["generate"], ["Missing argument 'MODEL'", "d3llm-trt generate --help"]),
        (["generate", "model", "x", "--max-tokens", "many"], ["--max-tokens", "'many'"]),
        (["generate", "model", "x", "--max-tokens", "0"], ["max_tokens is 0", "1 or more"]),
        (["generate", "model", "x", "--threshold", "low"], ["--threshold", "'low'", "auto or none"]),
        (["generate", "model", "x", "--threshold", "nan"], ["threshold is nan"]),
        (["generate", "model", "x", "--algorithm", "Magic"], ["'Magic'", "EntropyThreshold"]),
        (["generate", "model", "x", "--steps", "3"], ["steps is 3", "only LowConfidence"]),
        (["generate", "model", "x", "--block-size", "0"], ["block_size is 0"]),
        (["generate", "model", "x", "--decoding", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["generate", "model", "x", "--trace", "a.gif"], ["a.gif", ".png or .html"]),
        (["generate", "model", "x", "y", "--watch"], ["one prompt", "2 are given"]),
        (["generate", "model", "x", "--system", "s", "--raw"], ["--system", "leave out --raw"]),
        (["generate", "model", "x", "--chat"], ["--chat needs a tokenizer"]),
        (["generate", "model", "x", "--system", "s"], ["--system needs a tokenizer"]),
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
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 1}\n', ["p.jsonl:2", "prompt is 1", "a text"]),
        ("p.jsonl", b"\n{", ["p.jsonl:2", "not valid JSON"]),
        ("p.jsonl", b'{"text": "a"}', ["p.jsonl:1", "messages, prompt_token_ids"]),
        ("p.jsonl", b'{"prompt": "a", "messages": []}', ["p.jsonl:1", "one key"]),
        ("p.jsonl", b'{"messages": ["a"]}', ["messages is", "a list of messages"]),
        ("p.jsonl", b'{"prompt_token_ids": [1, true]}', ["prompt_token_ids is [1, true]"]),
        ("p.txt", b"\n \n", ["holds no prompt"]),
        ("p.txt", b"a\xffb", ["not UTF-8 at byte 1"]),
    ],
)
def test_bad_prompt_files_are_one_line(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    assert_one_line(run("generate", "model", "--file", tmp_path / name), *parts)


# Prompts and settings


def test_prompts_come_from_arguments_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst\r\n\nsecond\n")
    assert run("generate", "model", "zero", "--file", tmp_path / "a.txt").exit_code == 0
    assert FakeLLM.calls[0] == ["zero", "first", "second"]


def test_jsonl_prompts_have_three_forms(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    rows: list[dict[str, Any]] = [{"prompt": "a\nb"}, {"messages": messages}, {"prompt_token_ids": [1, 2]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("generate", "model", "--file", tmp_path / "a.jsonl").exit_code == 0
    assert FakeLLM.calls[0] == ["a\nb", messages, {"prompt_token_ids": [1, 2]}]


@pytest.mark.parametrize("args", [[], ["-"]])
def test_standard_input_is_one_prompt(args: list[str]) -> None:
    assert run("generate", "model", *args, stdin="two\nlines\n").exit_code == 0
    assert FakeLLM.calls[0] == ["two\nlines"]


@pytest.mark.usefixtures("with_tokenizer")
def test_text_is_a_chat_by_default_when_the_model_can() -> None:
    user = {"role": "user", "content": "hi"}
    run("generate", "model", "hi")
    assert FakeLLM.calls[0] == [[user]]
    run("generate", "model", "hi", "--system", "be nice")
    assert FakeLLM.calls[0] == [[{"role": "system", "content": "be nice"}, user]]
    run("generate", "model", "hi", "--raw")
    assert FakeLLM.calls[0] == ["hi"]


def test_options_override_the_decoding_file(tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("algorithm: MultiBlock\nthreshold: 0.3\nblock_size: 16\n")
    options = ["--decoding", str(tmp_path / "d.yaml"), "--threshold", "none", "--cache-delay-iter", "0"]
    assert run("generate", "model", "x", *options, "--no-early-stop", "--stop", "a", "--stop", "b").exit_code == 0
    params = FakeLLM.calls[1]
    assert params.stop_strings == ("a", "b")
    decoding = params.decoding
    assert (decoding.algorithm, decoding.threshold, decoding.block_size) == ("MultiBlock", None, 16)
    assert (decoding.cache_delay_iter, decoding.early_stop) == (0, False)


def test_engine_options_reach_the_engine() -> None:
    run("generate", "model", "x", "--device", "cpu", "--dtype", "float32", "--max-batch-size", "3")
    assert FakeLLM.options == {
        "backend": None, "device": "cpu", "dtype": "float32", "max_batch_size": 3, "progress": None
    }  # fmt: skip


# Answers


def test_text_goes_to_stdout_and_statistics_to_stderr() -> None:
    result = run("generate", "model", "a", "b")
    assert result.stdout == "answer 0\nanswer 1\n"
    assert result.stderr == "1 forward passes, 2 tokens, 2.00 TPF, 0.25 s\n" * 2


def test_json_is_one_object_per_prompt() -> None:
    result = run("generate", "model", "a", "fail", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["index"] for row in rows] == [0, 1]
    assert rows[0]["text"] == "answer 0" and rows[0]["commit_steps"] == [1, 1] and rows[0]["error"] is None
    assert rows[0]["metrics"]["tokens_per_forward"] == 2.0
    assert rows[1]["finish_reason"] == "error" and "prompt is bad" in rows[1]["error"]


def test_one_failure_leaves_the_others_alone() -> None:
    result = run("generate", "model", "a", "fail", "c")
    assert result.exit_code == 1
    assert result.stdout == "answer 0\nanswer 2\n"
    assert "error: prompt 2: prompt is bad; allowed: good\n" in result.stderr
    assert_one_line(run("generate", "model", "fail"), "prompt 1")


@pytest.mark.usefixtures("with_tokenizer")
def test_watch_and_trace(tmp_path: Path) -> None:
    result = run("generate", "model", "x", "--watch", "--trace", tmp_path / "t.html")
    assert result.exit_code == 0, result.output
    assert result.stdout == "answer 0\n" and "2 of 2 tokens" in result.stderr
    assert 'data-pass="1"' in (tmp_path / "t.html").read_text()


# Build and inspect: the command's own part, with stand-ins for the builder and the directory readers


def test_build_passes_its_options_and_prints_the_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    module = types.ModuleType("d3llm_trt.build.builder")
    module.build_engine = lambda *args, **named: calls.append((args, named)) or args[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "d3llm_trt.build.builder", module)
    monkeypatch.setattr(d3llm_trt.inspection, "engine_facts", lambda path: {"kind": "engine", "path": str(path)})
    args = ["build", "checkpoint", "-o", tmp_path / "e", "--dtype", "float32", "--max-seq-len", "64", "--overwrite"]
    assert run(*args).stdout == f"kind  engine\npath  {tmp_path / 'e'}\n"
    config = BuildConfig(dtype="float32", max_seq_len=64)
    assert calls == [((Path("checkpoint"), tmp_path / "e", config), {"overwrite": True, "progress": None})]
    assert json.loads(run(*args, "--json").stdout)["kind"] == "engine"


def test_inspect_needs_a_directory_and_verify_needs_an_engine(tmp_path: Path) -> None:
    assert_one_line(run("inspect", tmp_path / "none"), "none: no such directory")
    assert_one_line(run("inspect", tmp_path, "--verify"), "leave out --verify")


def test_model_facts_count_parameters_and_cache() -> None:
    facts = d3llm_trt.inspection.model_facts(model_config("dream"), "bfloat16")
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
    d3llm_trt.inspection.print_facts(facts, as_json=False)
    lines = [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == ["3 GiB", "8,015,581,184", "yes", "a, b", "96 bytes"]
