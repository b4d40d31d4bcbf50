"""The plugin library as TensorRT uses it: by the C++ host program, up to enqueue here and through it on a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.plugin_libraries import Built, plugin_libraries


@pytest.fixture(scope="module")
def built() -> Built:
    return plugin_libraries()


def run(built: Built, *arguments: str | Path, library: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [built.host, library or built.library, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def report(built: Built) -> str:
    """What the host says without a GPU; every check holds."""
    result = run(built)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_every_check_up_to_enqueue_holds(report: str) -> None:
    assert re.search(r"^(\d+) checks, 0 failed$", report, re.MULTILINE)
    assert "FAIL" not in report and report.count("\nok ") > 100


@pytest.mark.parametrize(
    "refusal",
    [
        "an unknown field is refused: D3llmBidirectionalAttention layers.0.attention: field causal is unknown; "
        "allowed: num_heads, num_kv_heads, head_dim",
        "a missing field is refused: D3llmBidirectionalAttention layers.0.attention: field head_dim is missing",
        "a field of int64 is refused: D3llmBidirectionalAttention layers.0.attention: field num_heads has type 10, "
        "length 1 and some data; expected type 5 (INT32), length 1",
        "num_kv_heads 3 of 4 is refused: D3llmBidirectionalAttention layers.0.attention: num_kv_heads is 3; "
        "allowed: divisors of num_heads, which is 4",
        "head_dim 48 is refused: D3llmBidirectionalAttention layers.0.attention: head_dim is 48; allowed: 32, 64, 128",
        "a type is refused: D3llmBidirectionalAttention layers.0.attention: qkv is FLOAT; allowed: HALF, BF16",
        "a type is refused: D3llmBidirectionalAttention layers.0.attention: positions is INT32; allowed: INT64",
        "padded qkv is refused: D3llmBidirectionalAttention layers.0.attention: qkv has rank 3; expected 2",
        "short tables is refused: D3llmBidirectionalAttention layers.0.attention: cos has extent 95 on axis 0; "
        "expected 96: max_seq_len",
        "a missing output is refused: D3llmBidirectionalAttention layers.0.attention: has 8 inputs and 1 outputs; "
        "expected 8 and 2",
    ],
)
def test_what_is_wrong_is_refused_in_these_words(report: str, refusal: str) -> None:
    assert f"ok   {refusal}\n" in report


def test_a_library_that_is_no_plugin_fails(built: Built, tmp_path: Path) -> None:
    missing = run(built, library=tmp_path / "none.so")
    assert missing.returncode == 2 and "cannot load the plugin library" in missing.stderr
    other = tmp_path / "other.so"
    source = tmp_path / "other.c"
    source.write_text("void setLoggerFinder(void* finder) {}\n")
    subprocess.run(["cc", "-shared", "-o", other, source], check=True)
    foreign = run(built, library=other)
    assert foreign.returncode == 2 and "the plugin library lacks getCreators" in foreign.stderr


def test_a_wrong_plugin_fails_checks(built: Built, tmp_path: Path) -> None:
    library = tmp_path / "wrong.so"
    data = built.library.read_bytes()
    assert data.count(b"num_kv_heads\0") > 0
    library.write_bytes(data.replace(b"num_kv_heads\0", b"num_kv_hosts\0"))
    result = run(built, library=library)
    assert result.returncode == 1 and "FAIL the field num_kv_heads is one int32" in result.stdout


def test_the_library_exports_three_names_and_needs_no_tensorrt(built: Built) -> None:
    names = subprocess.run(["nm", "-D", "--defined-only", built.library], capture_output=True, text=True, check=True)
    assert {line.split()[-1] for line in names.stdout.splitlines()} == {
        "getCreators",
        "setLoggerFinder",
        "d3llm_version",
    }
    needed = subprocess.run(["readelf", "-d", built.library], capture_output=True, text=True, check=True)
    libraries = re.findall(r"Shared library: \[([^\]]+)\]", needed.stdout)
    assert libraries and not [name for name in libraries if "nvinfer" in name or "cuda" in name]


@pytest.mark.gpu
def test_enqueue_equals_the_reference(built: Built) -> None:
    result = run(built, "--gpu")
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("relative error") == 2 * 2 * 7  # formats, eager and captured, problems
