"""What a wheel and a source distribution hold is what the tree holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_models import ROOT


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``lib``, which becomes the wheel, and the list of files of a source distribution."""
    folder = tmp_path_factory.mktemp("staged")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder, "build", "--build-base", folder]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "D3LLM_TRT_PLUGINS": "off"}, check=True, capture_output=True)
    return folder


def modules() -> Iterator[str]:
    """All Python files of the package and its page, through the links to the other folders."""
    for folder, _, files in os.walk(ROOT / "d3llm_trt", followlinks=True):
        yield from (str((Path(folder) / name).relative_to(ROOT)) for name in files if name.endswith((".py", ".html")))


def test_a_wheel_has_every_module_and_nothing_else(staged: Path) -> None:
    packed = {str(path.relative_to(staged / "lib")) for path in (staged / "lib").rglob("*") if path.is_file()}
    assert packed == {*modules(), "d3llm_trt/py.typed"}


def test_a_source_distribution_also_has_what_compiles_the_libraries(staged: Path) -> None:
    listed = set((staged / "d3llm_trt.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines())
    sources = [path for room in ("kernels", "c_api", "tensorrt") for path in (ROOT / "plugins" / room).rglob("*.*")]
    recipes = [ROOT / "CMakeLists.txt", *(ROOT / "cmake").iterdir(), ROOT / "setup.py", ROOT / "LICENSE"]
    assert {*modules(), *(str(path.relative_to(ROOT)) for path in (*sources, *recipes))} <= listed
