"""The ``cache`` commands, and what is logged of the cache and of requests."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from filelock import FileLock

from d3llm_trt import LLM, build_engine
from d3llm_trt.build.cache_entries import lock_of
from tests.support.command import assert_one_line, rows, run, run_process
from tests.support.terminal import in_terminal
from tests.support.tiny_models import CHECKPOINTS

SHORT = ("hi", "--max-tokens", "2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory that holds engines of both checkpoints, and something of a user's."""
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "cache"))
    for checkpoint in CHECKPOINTS.values():
        LLM(checkpoint, device="cpu").close()
    (tmp_path / "cache" / "mine").mkdir()
    (tmp_path / "cache" / "mine" / "config.json").write_text("{}")
    return tmp_path / "cache"


def test_engines_are_listed(cache: Path) -> None:
    (facts,) = rows(run("cache", "list", "--json"))
    assert facts["directory"] == str(cache)
    assert [entry["source"] for entry in facts["engines"]] == [str(CHECKPOINTS[f]) for f in ("dream", "llada")]
    assert [entry["family"] for entry in facts["engines"]] == ["dream", "llada"]
    assert facts["size"] == sum(entry["size"] for entry in facts["engines"]) > 1 << 20
    first, second, total = run("cache", "list").stdout.splitlines()
    assert str(CHECKPOINTS["dream"]) in first and "torch, bfloat16, 8 x 512" in second
    assert total.startswith(f"2 engines in {cache}, ")


def test_engines_are_removed_only_when_that_is_meant(cache: Path) -> None:
    assert_one_line(run("cache", "clear"), "2 engines would be removed", "give --yes")
    assert len(rows(run("cache", "list", "--json"))[0]["engines"]) == 2
    (facts,) = rows(run("cache", "clear", "--yes", "--json"))
    assert len(facts["removed"]) == 2 and not any(Path(path).exists() for path in facts["removed"])
    assert run("cache", "list").stdout == f"0 engines in {cache}, 0 bytes\n"
    assert (cache / "mine" / "config.json").exists()
    assert run("cache", "clear").stdout == "removed 0 engines, 0 bytes\n"
    LLM(CHECKPOINTS["llada"], device="cpu").close()
    assert len(rows(run("cache", "list", "--json"))[0]["engines"]) == 1


def test_a_terminal_asks_first(cache: Path) -> None:
    for answer, code, left in (("n", 1, 2), ("y", 0, 0)):
        with in_terminal("cache", "clear") as terminal:
            terminal.read_until("Remove 2 engines in")
            terminal.type(f"{answer}\n")
            assert terminal.exit_code() == code
        assert len(rows(run("cache", "list", "--json"))[0]["engines"]) == left


def test_an_engine_that_is_being_built_stays(cache: Path) -> None:
    (facts,) = rows(run("cache", "list", "--json"))
    busy = Path(facts["engines"][0]["path"])
    with FileLock(lock_of(busy)):
        result = run("cache", "clear", "--yes")
    assert result.stdout.splitlines()[-1] == "1 engine left, which other processes are building"
    assert busy.is_dir() and not Path(facts["engines"][1]["path"]).exists()


def test_an_engine_of_another_version_is_listed_and_removed(cache: Path) -> None:
    (facts,) = rows(run("cache", "list", "--json"))
    (Path(facts["engines"][0]["path"]) / "config.json").write_text("{}")
    assert "cannot be read by this version" in run("cache", "list").stdout
    assert run("cache", "clear", "-y").stdout.startswith("removed 2 engines")


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    env = {"D3LLM_TRT_CACHE": str(tmp_path / "none")}
    assert run("cache", "list", env=env).stdout == f"0 engines in {tmp_path / 'none'}, 0 bytes\n"
    assert run("cache", "clear", env=env).exit_code == 0 and not (tmp_path / "none").exists()


# Logs


def test_the_log_tells_of_the_cache_and_of_requests(tmp_path: Path) -> None:
    env = {"D3LLM_TRT_CACHE": str(tmp_path)}
    args = ["generate", CHECKPOINTS["llada"], "x" * 3000, *SHORT]
    first = run("--log-level", "INFO", *args, env=env).stderr
    assert f"info: the engine of {CHECKPOINTS['llada']} is not in the cache, so it is built: {tmp_path}" in first
    assert "info: built the engine" in first and "info: opened" in first and "on cpu, 8 slots" in first
    second = run(*args, env={**env, "D3LLM_TRT_LOG_LEVEL": "debug"}).stderr
    assert f"is in the cache: {tmp_path}" in second
    assert "warning: request 0 was refused: prompt has" in second and "debug: request 1: 2 tokens in" in second
    assert "debug: " not in first and logging.getLogger("d3llm_trt").level == logging.NOTSET
    quiet = run(*args, env=env).stderr
    assert [line.split(":")[0] for line in quiet.splitlines() if "passes" not in line] == ["error"]
    assert_one_line(run("--log-level", "loud", *args, env=env), "--log-level", "'loud'")


def test_a_process_reports_each_failure_once(engine: Path) -> None:
    done = run_process("generate", engine, "x" * 3000)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr


def test_a_library_leaves_the_root_logger_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = logging.root.handlers[:]
    with caplog.at_level(logging.INFO, logger="d3llm_trt"):
        build_engine(CHECKPOINTS["llada"], tmp_path / "e")
    assert "built the engine" in caplog.text and logging.root.handlers == before
    assert logging.getLogger("d3llm_trt").handlers == []
