"""The ``chat`` command: through pipes, and in a terminal."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from d3llm_trt import build_engine
from tests.support.command import COMMAND, assert_one_line, run
from tests.support.golden_cases import GOLDEN
from tests.support.terminal import in_terminal
from tests.support.tiny_models import QUESTIONS

QUESTION, NUMBER = next(iter(QUESTIONS.items()))
SLOW = ["--max-tokens", "400", "--algorithm", "LowConfidence", "--block-size", "1", "--ignore-eos"]


def test_messages_are_lines_and_answers_go_on(engine: Path) -> None:
    alone = run("chat", engine, stdin=f"{QUESTION}\n")
    assert alone.exit_code == 0 and alone.stdout.endswith(f"#### {NUMBER}\n") and alone.stderr == ""
    twice = run("chat", engine, stdin=f"{QUESTION}\n\n/reset\n{QUESTION}\n/exit\nnever\n")
    assert twice.stdout == 2 * alone.stdout
    followed = run("chat", engine, stdin=f"{QUESTION}\n{QUESTION}")
    assert followed.stdout.startswith(alone.stdout) and followed.stdout != 2 * alone.stdout


def test_system_messages_and_settings_count(engine: Path) -> None:
    plain = run("chat", engine, stdin=f"{QUESTION}\n").stdout
    short = run("chat", engine, stdin=f"/set max_tokens 4\n{QUESTION}\n").stdout
    assert plain.startswith(short.rstrip("\n")) and len(short) < len(plain)
    given = run("chat", engine, "--system", "Say no.", stdin=f"{QUESTION}\n").stdout
    assert run("chat", engine, stdin=f"/system Say no.\n{QUESTION}\n").stdout == given
    assert run("chat", engine, "--system", "Say no.", stdin=f"/system\n{QUESTION}\n").stdout == plain
    shown = run("chat", engine, stdin='/set stop ["a", "b"]\n/set threshold none\n/set early-stop false\n/set\n').stdout
    values = dict(line.split(maxsplit=1) for line in shown.splitlines())
    assert (values["stop"], values["threshold"], values["early_stop"]) == ('["a", "b"]', "none", "false")
    assert values["max_tokens"] == "256" and "n" not in values
    assert "/reset" in run("chat", engine, stdin="/help").stdout


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("/nonsense", "command is '/nonsense'; allowed: /reset"),
        ("/set bogus 1", "setting 'bogus' is unknown; allowed: max_tokens"),
        ("/set temperature", "lacks a value"),
        ("/set temperature hot", "temperature is 'hot'"),
        ("/set block_size 0", "block_size is 0"),
        ("/set steps 3", "only LowConfidence"),
        ("x" * 9000, "max_seq_len"),
    ],
)
def test_errors_do_not_end_a_chat(engine: Path, line: str, complaint: str) -> None:
    plain = run("chat", engine, stdin=f"{QUESTION}\n").stdout
    result = run("chat", engine, stdin=f"{line}\n{QUESTION}\n")
    assert result.exit_code == 1 and result.stdout == plain
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ") and complaint in result.stderr


def test_text_that_is_not_utf8_fails_alone(engine: Path) -> None:
    done = subprocess.run([*COMMAND, "chat", str(engine)], input=b"\xff\xfe\nhi\n", capture_output=True, timeout=60)
    assert done.returncode == 1 and b"valid Unicode" in done.stderr and done.stderr.count(b"\n") == 1


def test_chat_needs_a_model_that_can(tmp_path: Path) -> None:
    mute = build_engine(GOLDEN / "llada_tiny", tmp_path / "mute")
    assert_one_line(run("chat", mute, stdin="hi"), "chat needs a tokenizer", "generate --raw")
    assert_one_line(run("chat", mute, "--n", "2", stdin="hi"), "n is 2")


def test_an_interrupt_stops_the_answer_and_not_the_chat(engine: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "chat", str(engine), *SLOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{QUESTION}\n".encode())
    process.stdin.flush()
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, messages = process.communicate(b"/set max_tokens 1\nhi\n", timeout=60)
    assert process.returncode == 0 and b"(stopped)" in messages and rest.count(b"\n") >= 2


# In a terminal


def test_a_terminal_shows_the_canvas_and_remembers_lines(engine: Path) -> None:
    with in_terminal("chat", str(engine)) as terminal:
        terminal.read_until("/help lists the commands.")
        terminal.read_until("> ")
        terminal.type(f"{QUESTION}\n")
        seen = terminal.read_until("TPF")
        assert "·" in seen and "of 256 tokens" in seen and f"#### {NUMBER}\r\n" in seen
        terminal.read_until("> ")
        terminal.type("\x1b[A\n")  # the key that goes up in the history
        assert QUESTION[:30] in terminal.read_until("TPF")
        terminal.read_until("> ")
        terminal.type("half a line")
        terminal.read_until("half a line")
        time.sleep(0.2)  # a signal that comes before input() waits again is seen at the next key only
        terminal.type("\x03")
        terminal.read_until("(Ctrl-D leaves)")
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


def test_an_answer_is_stopped_in_a_terminal(engine: Path) -> None:
    with in_terminal("chat", str(engine), *SLOW) as terminal:
        terminal.read_until("> ")
        terminal.type("hello\n")
        terminal.read_until("pass 3:")
        terminal.type("\x03")
        terminal.read_until("(stopped)")
        terminal.read_until("> ")
        terminal.type("/exit\n")
        assert terminal.exit_code() == 0
