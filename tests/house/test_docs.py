"""What the documents say is what the results say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from d3llm_trt.cli.main import cli
from tests.support.golden_cases import read_cases
from tests.support.tiny_models import CHECKPOINTS, QUESTIONS, ROOT

TENSORRTS_WORDS = {"CUDA initialization failure with error: 35"}
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
DOCS = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "tiny_d3llm" / "README.md"]


def results(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return values


def test_the_tiny_checkpoints_are_as_good_as_asked() -> None:
    for name in ("tiny_d3llm.json", "tiny_d3llm_h100.json", "tiny_d3llm_h100_fp8.json"):
        for family in ("llada", "dream"):
            measured = results(name)[family]
            for tokens in (96, 256):
                assert measured[f"LowConfidence, max_tokens {tokens}"]["exact"] >= 0.95
                fast = measured[f"FullAttnMultiBlock 0.4, max_tokens {tokens}"]
                assert fast["exact"] >= 0.93 and fast["tokens_per_forward"] >= 3 and fast["problems"] == 500


def test_a_gpu_answers_as_the_cpu_does_and_graphs_change_no_token() -> None:
    cpu, gpu, eager, fp8 = (results(f"tiny_d3llm{run}.json") for run in ("", "_h100", "_h100_eager", "_h100_fp8"))
    for family in ("llada", "dream"):
        for title, wanted in cpu[family].items():
            assert gpu[family][title]["digest"] == eager[family][title]["digest"]
            for run, points in ((gpu, 0.01), (fp8, 0.015)):
                found = run[family][title]
                assert abs(found["exact"] - wanted["exact"]) <= points
                assert abs(found["tokens_per_forward"] / wanted["tokens_per_forward"] - 1) <= 0.03


def test_tables_of_measured_numbers_are_made_from_the_results() -> None:
    check = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    assert subprocess.run(check, capture_output=True, text=True, check=False).stderr == ""


def test_errors_are_quoted_as_they_are_raised() -> None:
    """What docs/tensorrt.md explains; … stands for what differs from case to case."""
    text = (ROOT / "docs" / "tensorrt.md").read_text(encoding="utf-8")
    table = text.split("## What an error means")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?`.*?) \|", table, re.MULTILINE)
    sources = "".join(
        path.read_text(encoding="utf-8")
        for room in ("build", "runtime", "plugins", "d3llm_trt")
        for path in (ROOT / room).rglob("*.py")
    )
    # What is written into a message: a version, a package, a backend.
    source = re.sub(r"\{[^{}]*\}", "…", sources)
    known = re.compile(r"\d+\.\d+(\.\d+)*|tensorrt-cu13|'tensorrt'")
    quoted = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row) if " " in quote]
    assert len(quoted) > 20
    parts = {part.strip() for quote in quoted for part in known.sub("…", quote).split("…")}
    assert {part for part in parts if part not in source and part not in TENSORRTS_WORDS} == set()


def test_the_number_of_golden_cases() -> None:
    cases = read_cases()
    count = f"{len({case.id for case in cases})} golden cases"
    assert count in README.read_text(encoding="utf-8")
    assert f"{count} ({len(cases)} requests)" in (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")


def test_the_readmes_question_has_the_answer_that_stands_below_it() -> None:
    text = README.read_text(encoding="utf-8")
    ((question, answer),) = re.findall(r'generate out/engine \\\n *"([^"]+)"\n```\n\n```\n(.*\n.*)\n', text)
    command = ["generate", str(CHECKPOINTS["llada"]), question]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).stdout.strip() == answer


def test_the_readmes_python_runs_and_its_answers_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.replace('"out/engine"', repr(str(CHECKPOINTS["llada"]))), names)
    names["llm"].close()
    results = [QUESTIONS[question] for question in names["questions"]]
    printed = capsys.readouterr().out
    assert all(f"#### {result} stop" in printed for result in results)
    assert printed.rstrip().endswith(f"#### {results[0]}")


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^@\w+@$", text, re.MULTILINE)
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", text):
        if "://" in target:
            continue
        linked = path.parent / target if target else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"


def test_the_design_names_files_that_exist() -> None:
    rooms = ("build", "d3llm_trt", "plugins", "runtime", "tests", "benchmarks")
    files = [f"/{path.relative_to(ROOT)}" for room in rooms for path in (ROOT / room).rglob("*.*")]
    named = re.findall(r"`([a-z_/0-9]+\.(?:py|h|cu))`", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    assert len(named) > 100
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


def anchors(path: Path) -> set[str]:
    """What a document's headings are called in links to them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
