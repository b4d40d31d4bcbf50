"""Traces and the live view: readable files, nothing from a model is trusted, bad paths are refused early."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

import pytest

from d3llm_trt.cli.palette import ANCHORS, hex_colour, ink_on, pass_colour, printable
from d3llm_trt.cli.trace import check_trace_path, write_trace
from d3llm_trt.cli.watch import MASK, canvas_text, watch
from d3llm_trt.errors import ConfigError
from d3llm_trt.runtime.outputs import Canvas, CompletionOutput, RequestMetrics, RequestOutput

NASTY = ["<script>alert(1)</script>", "$x^2$", "\n", " the", "世界", "\x1b[31m", '"&', "\ufffd", "@last@", "a" * 50]


def output(tokens: int, steps: list[int] | None = None, canvas: Canvas | None = None) -> RequestOutput:
    steps = steps if steps is not None else [1 + index // 3 for index in range(tokens)]
    answer = CompletionOutput(token_ids=list(range(tokens)), commit_steps=steps)
    passes = max(steps, default=0)
    metrics = RequestMetrics(num_forward_passes=passes, tokens_per_forward=tokens / max(passes, 1))
    return RequestOutput("0", "prompt", [1], [answer], True, metrics, canvas=canvas)


# Files


@pytest.mark.parametrize("count", [0, 1, 40, 600])
def test_png_is_a_picture_that_grows_with_the_answer(tmp_path: Path, count: int) -> None:
    pytest.importorskip("matplotlib")
    tokens = [NASTY[index % len(NASTY)] for index in range(count)]
    write_trace(output(count), tokens, tmp_path / "trace.png")
    content = (tmp_path / "trace.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    assert width > 1000 and 100 < height < 4000
    assert [path.name for path in tmp_path.iterdir()] == ["trace.png"]


def test_html_shows_every_token_with_its_pass_and_trusts_none(tmp_path: Path) -> None:
    write_trace(output(len(NASTY)), NASTY, tmp_path / "trace.html")
    page = (tmp_path / "trace.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page and "@last@" in page
    assert re.findall(r'data-pass="(\d+)"', page) == [str(1 + index // 3) for index in range(len(NASTY))]
    assert 'title="pass 2, position 4"' in page
    assert "10 tokens in 4 forward passes, 2.50 tokens per pass" in page
    assert not re.search(r"(src|href)=|https?:", page)


@pytest.mark.parametrize("name", ["trace.gif", "trace", "missing/trace.png", "folder.html"])
def test_a_bad_path_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match=f"trace file is .*{name}.*allowed"):
        check_trace_path(tmp_path / name)


def test_missing_matplotlib_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install d3llm-trt\[trace\]"):
        check_trace_path(tmp_path / "trace.png")
    check_trace_path(tmp_path / "trace.html")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ConfigError, match="no space left"):
        write_trace(output(1), ["a"], tmp_path / "trace.html")
    assert not list(tmp_path.iterdir())


# Colours and characters


def test_colours_run_from_the_first_pass_to_the_last() -> None:
    assert pass_colour(1, 9) == ANCHORS[0] and pass_colour(9, 9) == ANCHORS[-1] and pass_colour(5, 9) == ANCHORS[2]
    assert pass_colour(1, 1) == ANCHORS[0] and pass_colour(0, 3) == ANCHORS[0]
    assert hex_colour((0, 16, 255)) == "#0010ff"
    assert ink_on(ANCHORS[0]) == "#ffffff" and ink_on(ANCHORS[-1]) == "#000000"


def test_printable_text_has_no_control_characters() -> None:
    assert printable("a b\n\t\x1b\x85é世") == r"a␣b⏎⇥\x1b\x85é世"
    assert printable("a b\n", keep=" \n") == "a b\n"


# Live view


def canvases() -> list[RequestOutput]:
    states = [[-1, 0, 0, 0], [-1, 1, 0, 0], [-1, 1, 2, 2]]
    return [output(step, canvas=Canvas([9, 1, 2, 3], steps, 1)) for step, steps in enumerate(states)]


def test_watch_prints_lines_when_there_is_no_terminal() -> None:
    file = io.StringIO()
    states = canvases()
    assert watch(iter(states), str, file) is states[-1]
    assert file.getvalue().splitlines()[1:] == ["pass 1: 1 of 3 tokens", "pass 1: 3 of 3 tokens"]


def test_watch_draws_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    watch(canvases(), lambda token_id: f"<{token_id}>", file)
    assert "3 of 3 tokens" in file.getvalue() and "<1>" in file.getvalue()


def test_canvas_text_shows_the_answer_masks_as_dots_and_no_escapes() -> None:
    text = canvas_text(Canvas([7, 7, 1, 2, 7], [-1, 0, 1, 2, 0], 1), lambda i: {1: "a\x1b", 2: "[b]\n"}[i])
    assert text.plain == f"{MASK}a\\x1b[b]\n{MASK}"


def test_watch_of_an_empty_stream_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="no output"):
        watch([], str, io.StringIO())
