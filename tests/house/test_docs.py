"""What the documents say is what the results say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.support.golden_cases import read_cases
from tests.support.tiny_models import ROOT

TENSORRTS_WORDS = {"CUDA initialization failure with error: 35"}
RESULTS = ROOT / "benchmarks" / "results"
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "tiny_d3llm" / "README.md"]


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
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    cases = read_cases()
    assert f"{len({case.id for case in cases})} golden cases ({len(cases)} requests)" in readme


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"^@\w+@$", text, re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target
