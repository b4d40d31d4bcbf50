"""Files of prompts through ``generate``: what a line may hold, answers as they are done, runs that end early."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.cli import tally
from d3llm_trt.cli.batch import Asker, questions
from d3llm_trt.errors import EngineError
from d3llm_trt.prompt_files import Entry
from d3llm_trt.runtime.engines.base import ForwardBatch
from tests.support.command import (
    COMMAND,
    answers_in,
    assert_one_line,
    count_lines,
    end_when_written,
    rows,
    run,
    run_process,
)
from tests.support.engines import cpu_engine
from tests.support.golden_cases import GOLDEN
from tests.support.killed_runs import check_answered_once, run_killed, write_prompts
from tests.support.terminal import in_terminal
from tests.support.tiny_models import QUESTIONS

QUESTION = next(iter(QUESTIONS))
SHORT = ("--max-tokens", "4")
SLOW = ("--max-tokens", "300", "--algorithm", "LowConfidence", "--ignore-eos")


def write_lines(path: Path, *lines: object) -> Path:
    """A file with a line for each value: a text as it is, anything else as JSON."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


# What a file may hold


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("p.TXT", "one\n\n  \n-\ntwo words\n", ["one", "-", "two words"]),
        ("prompts", "one\r\ntwo", ["one", "two"]),
        ("p.JsonL", '{"prompt": "one"}\n\n{"prompt": "-"}\n', ["one", "-"]),
        ("p.ndjson", '{"prompt": "one"}\n', ["one"]),
        ("p.JSON", '["one", {"prompt": "two", "id": 1}, {"prompt": "-"}]', ["one", "two", "-"]),
        ("p.json", '\ufeff{"prompt": "only"}', ["only"]),
    ],
)
def test_files_are_read_by_their_suffix(engine: Path, tmp_path: Path, name: str, content: str, seen: list[str]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    output = rows(run("generate", engine, "--raw", "--json", *SHORT, "--file", tmp_path / name))
    assert [row["prompt"] for row in output] == seen


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("p.csv", b"a,b", ["'.csv'", ".txt, .jsonl, .ndjson, .json", "--format"]),
        ("p.jsonl", b"no json\nat all\n", ["p.jsonl:1", "not valid JSON", "none of the 2 prompts"]),
        ("p.jsonl", b'[{"prompt": "a"}]', ["p.jsonl:1", "an object"]),
        ("p.jsonl", b"version https://git-lfs.github.com/spec/v1\n", ["Git LFS pointer"]),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', ["not valid JSON", ".jsonl file"]),
        ("p.json", b"[]", ["holds no prompt"]),
        ("p.json", b"3", ["allowed: a list of prompts"]),
        ("p.txt", "a\nb".encode("utf-16"), ["UTF-16"]),
        ("p.txt", b"P\0K\0\n\0", ["NUL"]),
        ("p.txt", b"", ["holds no prompt"]),
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    assert_one_line(run("generate", "model", "--file", tmp_path / name), *parts)
    assert_one_line(run("generate", "model", "a prompt", "--file", tmp_path / name), *parts)


def test_a_format_may_be_named(engine: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "lines.data", {"prompt": "one"})
    args = ["generate", engine, "--raw", "--json", *SHORT, "--file"]
    assert [row["prompt"] for row in rows(run(*args, path, "--format", "jsonl"))] == ["one"]
    piped = run(*args, "-", "--format", "jsonl", stdin='{"prompt": "one"}\n{"prompt": "two"}\n')
    assert [row["prompt"] for row in rows(piped)] == ["one", "two"]
    assert [row["prompt"] for row in rows(run(*args, "-", stdin="one\n\ntwo\n"))] == ["one", "two"]
    assert_one_line(run("generate", engine, "x", "--format", "txt"), "--format says how --file is read")
    assert_one_line(run("generate", engine, "-", "--file", "-"), "given twice")


@pytest.mark.parametrize("blank", ["", " \t", "\u3000"])
def test_blank_prompts_are_refused_wherever_they_stand(engine: Path, tmp_path: Path, blank: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": blank}, {"prompt": "good"})
    for args, stdin in ((["good", blank], None), (["--file", path], None), (["-", "good"], blank)):
        result = run("generate", engine, "--json", *SHORT, *args, stdin=stdin)
        errors = [row["error"] for row in rows(result, code=1)]
        assert len(errors) == 2 and [error for error in errors if error is not None] != []
    assert_one_line(run("generate", "model", blank), "prompt 1", "not blank")


def test_a_bad_line_fails_alone(engine: Path, tmp_path: Path) -> None:
    bad: list[object] = [
        "{not json", "[1]", '"text"', {"prompt": 1}, {"prompt": "a", "messages": []}, {"text": "a"}, {"messages": []},
        {"prompt_token_ids": [1, True]}, {"prompt_token_ids": []}, {"prompt": "a", "temperature": -1},
        {"prompt": "a", "max_tokens": "9"}, {"prompt": "a", "sampling_params": {"bogus": 1}},
        {"prompt": "a", "params": 3}, {"prompt": "a", "decoding": {"algorithm": "Magic"}}, '{"prompt": NaN}',
        '{"prompt": "a", "id": 1e999}', '{"prompt": "a", "prompt": "b"}',
        {"prompt": "x" * 3000}, '{"prompt": "a", "deep": ' + "[" * 5000 + "]" * 5000 + "}",
    ]  # fmt: skip
    path = write_lines(tmp_path / "p.jsonl", *bad, {"prompt": "good"})
    result = run("generate", engine, "--json", *SHORT, "--file", path)
    *failed, good = rows(result, code=1)
    assert len(failed) == len(bad) and good["error"] is None and good["index"] == len(bad)
    for number, row in enumerate(failed, start=1):
        assert row["error"] and row["finish_reason"] == "error" and row["text"] == ""
        assert f"error: {path}:{number}: {row['error'][:20]}" in result.stderr
    assert f"1 answer, {len(bad)} errors, 4 tokens" in result.stderr.splitlines()[-1]


def test_a_line_keeps_its_own_keys(engine: Path, tmp_path: Path) -> None:
    own = {"id": {"a": [1]}, "topic": "sums", "text": "mine", "input_text": None, "index": 7}
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "good", **own}, {"prompt": 1, "id": "bad"})
    good, bad = rows(run("generate", engine, "--json", *SHORT, "--file", path), code=1)
    assert (good["id"], good["topic"], good["index"]) == (own["id"], "sums", 0)
    assert good["text"] == good["outputs"][0]["text"] != "mine"
    assert sorted((good["input_text"], good["input_input_text"]), key=str) == [None, "mine"]
    assert good["input_index"] == 7 and bad["id"] == "bad"


def test_a_line_has_settings_of_its_own(engine: Path, tmp_path: Path) -> None:
    one_by_one = {"algorithm": "LowConfidence"}
    lines: list[dict[str, Any]] = [
        {"prompt": QUESTION},
        {"prompt": QUESTION, "max_tokens": 3},
        {"prompt": QUESTION, "sampling_params": {"max_tokens": 5, "ignore_eos": True}, "id": 1},
        {"prompt": QUESTION, "params": {"max_tokens": 6}, "decoding": one_by_one, "n": 2},
        {"prompt": QUESTION, "stop": ["cookies"]},
    ]
    path = write_lines(tmp_path / "p.jsonl", *lines)
    output = rows(run("generate", engine, "--json", "--max-tokens", "8", "--block-size", "4", "--file", path))
    assert [len(row["token_ids"]) for row in output[:4]] == [8, 3, 5, 6]
    assert len(output[3]["outputs"]) == 2 and output[3]["metrics"]["num_forward_passes"] == 12
    assert output[0]["finish_reason"] == "length" and "sampling_params" not in output[2]
    whole = rows(run("generate", engine, "--json", "--file", path))[4]
    assert whole["stop_reason"] == "cookies"


def test_every_setting_has_an_option(engine: Path) -> None:
    text = run("generate", "--help").stdout
    for name in (item.name for kind in (SamplingParams, DecodingConfig) for item in fields(kind)):
        assert f"--{name.replace('_', '-')}" in text
    args = ["generate", engine, QUESTION, "--json", "--max-tokens", "12"]
    (row,) = rows(run(*args, "--n", "3", "--temperature", "8", "--seed", "5"))
    assert len({tuple(answer["token_ids"]) for answer in row["outputs"]}) == 3
    (plain,) = rows(run(*args))
    stop = str(plain["token_ids"][5])
    (row,) = rows(run(*args, "--stop-token-ids", f"{stop},0"))
    assert row["stop_reason"] == int(stop) and len(row["token_ids"]) <= 6
    (row,) = rows(run(*args, "--stop", plain["text"][4:8], "--include-stop-str-in-output"))
    assert row["text"] == plain["text"][:8]
    (row,) = rows(run(*args[:-2], "--max-tokens", "none", "--no-skip-special-tokens", "--ignore-eos"))
    assert "<|endoftext|>" in row["text"] and len(row["token_ids"]) + len(row["prompt_token_ids"]) == 512


# How answers come


def test_answers_are_printed_as_they_are_done_and_in_order(engine: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a", "max_tokens": 2}, *[{"prompt": "b"}] * 3)
    args = ["generate", engine, "--json", "--file", path, *SLOW]
    process = subprocess.Popen([*COMMAND, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert first["index"] == 0 and process.poll() is None  # the others are still being answered
    process.send_signal(signal.SIGTERM)
    rest, messages = process.communicate(timeout=30)
    assert process.returncode == 143 and rest == "" and "Traceback" not in messages
    assert re.match("(1 answer, 0 errors, 2|0 answers, 0 errors, 0) tokens", messages.splitlines()[-1])


def test_totals_come_last_and_statistics_are_those_of_arguments(engine: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.txt", "one", "x" * 3000, "two")
    result = run("generate", engine, *SHORT, "--file", path)
    assert result.exit_code == 1 and len(result.stdout.splitlines()) >= 2
    error, totals = result.stderr.splitlines()
    assert error.startswith(f"error: {path}:2: ")
    assert re.fullmatch(r"2 answers, 1 error, 8 tokens, \d+\.\d s", totals)


def test_a_terminal_has_a_line_of_progress(engine: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a", "max_tokens": 30}, *[{"prompt": "b"}] * 8)
    with in_terminal("generate", str(engine), "--file", str(path), "--ignore-eos", *SHORT) as terminal:
        seen = terminal.read_until("9 answers, 0 errors, 62 tokens")
        assert "\r\x1b[K" in seen and terminal.exit_code() == 0


def test_progress_is_logged_now_and_then(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "FIRST_LOGGED", 1e-9)
    path = write_lines(tmp_path / "p.txt", *["one"] * 200)
    *logged, totals = run("generate", engine, "--json", *SHORT, "--file", path).stderr.splitlines()
    assert re.fullmatch(r"1 of 200 prompts: 1 answer, 0 errors, 4 tokens, \d+\.\d s", logged[0])
    assert 5 < len(logged) < 60 and totals.startswith("200 answers")


def test_a_broken_engine_ends_a_run_and_fails_nobody() -> None:
    """What it ran when it broke is not said to have failed, so that it is asked again when the run is resumed."""
    engine = cpu_engine(GOLDEN / "llada_tiny", slots=2)
    works, passes = engine.forward, 0

    def forward(batch: ForwardBatch) -> torch.Tensor:
        nonlocal passes
        passes += 1
        if passes > 6:
            raise RuntimeError("the GPU is lost")
        return works(batch)

    engine.forward = forward  # type: ignore[method-assign]
    entries = [Entry(str(index), "", {"prompt_token_ids": [index + 1]}) for index in range(40)]
    asked = questions(entries, SamplingParams(max_tokens=2, ignore_eos=True))
    done = []
    with LLM.over(engine) as llm, pytest.raises(EngineError, match="the GPU is lost"):
        for question, output in Asker(llm, chat=False, system=None).answers(asked):
            assert output.error is None
            done.append(question.index)
    assert done == list(range(len(done))) and 2 <= len(done) < 16


def test_memory_does_not_grow_with_the_file(engine: Path, tmp_path: Path) -> None:
    """Prompts with 60 MB of keys of their own pass through a process that keeps few of them."""
    lines = ({"prompt": 1, "ballast": "x" * 60_000} for _ in range(1000))
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "good"}, *lines)
    code = (
        "import resource, sys; from d3llm_trt.cli.main import main\n"
        "try: main()\n"
        "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    most = []
    for file in (write_lines(tmp_path / "small.jsonl", {"prompt": "good"}), path):
        command = [sys.executable, "-c", code, "generate", str(engine), "--file", str(file), "--json", *SHORT]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        most.append(int(done.stderr.splitlines()[-1]))
    assert most[1] - most[0] < 30_000  # kB


# Files of answers


def texts(path: Path) -> list[str]:
    return [row["text"] for row in answers_in(path)]


def test_killed_runs_are_resumed(engine: Path, tmp_path: Path) -> None:
    prompts, output = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    write_prompts(prompts, 120)
    args = ["generate", engine, "--file", prompts, "--output", output, "--resume"]
    found = run_killed(args, output, [0, 9, 50])
    assert found[-1] < 120
    check_answered_once(output, 120)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_is_done_is_kept(engine: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    prompts, output = tmp_path / "p.jsonl", tmp_path / "a.jsonl"
    write_prompts(prompts, 400)
    args = ["generate", engine, "--file", prompts, "--output", output, "--resume"]
    done, messages = end_when_written(args, output, 5, number)
    kept = count_lines(output)
    assert done == code and 5 <= kept < 400 and "Traceback" not in messages
    told = re.search(r"^(\d+) answers, 0 errors", messages, re.MULTILINE)
    assert told and int(told[1]) in (kept, kept - 1)  # the signal may come between writing and counting
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[: kept + 2]))
    result = run(*args)
    assert result.exit_code == 0 and f"{kept + 2} answers, 0 errors ({kept} of them before)" in result.stderr
    check_answered_once(output, kept + 2)


def test_a_torn_last_line_is_answered_again(engine: Path, tmp_path: Path) -> None:
    path, output = write_lines(tmp_path / "p.txt", "one", "two", "x" * 3000), tmp_path / "a.jsonl"
    args = ["generate", engine, *SHORT, "--file", path, "--output", output]
    first = run(*args)
    assert first.exit_code == 1 and first.stdout == ""
    whole, data = texts(output), output.read_bytes()
    ends = [index + 1 for index, byte in enumerate(data) if byte == ord("\n")]
    for cut in (0, 1, ends[0] - 1, ends[0], ends[0] + 9, ends[1] + 1, ends[2] - 1, ends[2]):
        output.write_bytes(data[:cut])
        assert run(*args, "--resume").exit_code == 1
        assert texts(output) == whole and answers_in(output)[2]["error"] is not None


def test_resuming_needs_the_same_prompts(engine: Path, tmp_path: Path) -> None:
    path, output = write_lines(tmp_path / "p.txt", "one", "two"), tmp_path / "a.jsonl"
    args = ["generate", "--file", path, "--output", output, *SHORT]
    assert run(*args, engine).exit_code == 0
    assert_one_line(run(*args, "model"), "holds something already", "--resume")
    write_lines(path, "one", "changed", "three")
    assert_one_line(run(*args, "model", "--resume"), "p.txt:2", "another prompt")
    write_lines(path, "one")
    assert_one_line(run(*args, "model", "--resume"), "more answers than there are prompts")
    write_lines(path, "one", "two")
    before = output.read_bytes()
    done = run(*args, "model", "--resume")  # which needs no model
    assert done.exit_code == 0 and output.read_bytes() == before and "2 of them before" in done.stderr
    for other in ("text\n", "a user's notes", '{"index": 0}\n', '{"index": 0, "prompt": "a"}'):
        output.write_text(other)
        assert_one_line(run(*args, "model", "--resume"), "a.jsonl:1", "no answer to prompt 1")
        assert output.read_text() == other


def test_output_files_that_cannot_be(engine: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "one"})
    args = ["generate", engine, "--file", path]
    assert_one_line(run(*args, "--resume"), "--output", "name it")
    assert_one_line(run(*args, "--output", path, "--resume"), "which is the file of the prompts")
    assert_one_line(run(*args, "--output", tmp_path), "directory")
    assert_one_line(run(*args, "--output", tmp_path / "no" / "a"), "make the missing folder")
    assert_one_line(run(*args, "--output", tmp_path / "a", "--watch"), "leave out --output")
    assert path.read_text() == '{"prompt": "one"}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_a_run_with_one_error(engine: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.txt", "one")
    result = run("generate", engine, "--file", path, "--output", "/dev/full", *SHORT)
    assert result.exit_code == 2 and "free some space" in result.stderr.splitlines()[-1]


def test_two_runs_do_not_write_to_one_file(engine: Path, tmp_path: Path) -> None:
    path, output = write_lines(tmp_path / "p.txt", "one"), tmp_path / "a.jsonl"
    with output.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        args = ["generate", engine, "--file", path, "--output", output]
        assert_one_line(run(*args), "another process")


# Encodings


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_what_the_terminal_cannot_show_is_escaped(engine: Path, tmp_path: Path, encoding: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "漢字 é 😀", "id": "é😀"})
    args = ["generate", engine, "--raw", *SHORT, "--file", path]
    done = run_process(*args, "--json", PYTHONIOENCODING=encoding)
    row = json.loads(done.stdout.decode(encoding))
    assert (row["prompt"], row["id"], done.returncode) == ("漢字 é 😀", "é😀", 0)


def test_text_is_escaped_too(engine: Path) -> None:
    """A stop string that ends an answer is part of the text, so that the text holds what was asked for."""
    code = (
        "import sys; from d3llm_trt.cli.streams import escape_what_does_not_fit, write_line, write_json\n"
        "escape_what_does_not_fit(); write_line('é漢😀'); write_json({'a': 'é漢😀'})"
    )
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    text, row = done.stdout.decode("cp1252").splitlines()
    assert text == "é\\u6f22\\U0001f600" and json.loads(row) == {"a": "é漢😀"}


# Errors that need no model


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "nowhere", "x"],
        ["generate", "ENGINE", "x", "--device", "tpu"],
        ["generate", "ENGINE", "x", "--dtype", "float32"],
        ["generate", "ENGINE", "x", "--max-tokens", "-3"],
        ["generate", "ENGINE", "x", "--stop", ""],
        ["generate", "ENGINE", "x", "-f", "nowhere.txt"],
        ["generate", "ENGINE", ""],
        ["chat", "nowhere"],
        ["bench", "nowhere"],
        ["bench", "--shape", "llada-8b", "--block-size", "0"],
        ["build", "nowhere", "-o", "x"],
        ["inspect", "nowhere"],
    ],
)
def test_errors_come_before_torch(engine: Path, args: list[str]) -> None:
    code = "import sys; from d3llm_trt.cli.main import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, *(str(engine) if arg == "ENGINE" else arg for arg in args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n") and done.stderr.count("\n") == 1, done.stderr
