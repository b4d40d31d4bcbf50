"""The command ``d3llm-trt`` as tests run it: in this process, or as one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from d3llm_trt.cli.main import cli

COMMAND = [sys.executable, "-c", "from d3llm_trt.cli.main import main; main()"]


def run(*args: object, stdin: bytes | str | None = None, env: dict[str, str] | None = None) -> Result:
    """The command in this process."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin, prog_name="d3llm-trt", env=env)


def run_process(*args: object, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    """The command as a process, with variables of the environment."""
    command = [*COMMAND, *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, **env}, timeout=120)


def assert_one_line(result: Result, *parts: str, code: int = 2) -> None:
    """The command printed nothing but one error, which holds ``parts``, and ended with ``code``."""
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result.stderr
    for part in parts:
        assert part in result.stderr
    assert not result.stdout


def rows(result: Result, code: int = 0) -> list[dict[str, Any]]:
    """The JSON objects that the command printed."""
    assert result.exit_code == code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def answers_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of answers."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def end_when_written(args: Sequence[object], output: Path, lines: int, number: signal.Signals) -> tuple[int, str]:
    """Start the command and send it a signal as soon as ``output`` has so many lines; its exit code and messages."""
    process = subprocess.Popen([*COMMAND, *map(str, args)], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and count_lines(output) < lines:
        time.sleep(0.001)
    process.send_signal(number)
    _, messages = process.communicate(timeout=60)
    return process.returncode, messages


def count_lines(path: Path) -> int:
    """Lines of a file, whole ones and one that is not; 0 if there is no file."""
    return len(path.read_bytes().splitlines()) if path.exists() else 0
