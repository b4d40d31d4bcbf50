"""Who may import whom, and that nothing heavy is imported early."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TENSORRT = ("tensorrt", "tensorrt_rtx")


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    rooms = ("build", "plugins", "runtime")
    homes = {"d3llm_trt": "d3llm_trt", **{room: f"d3llm_trt.{room}" for room in rooms}}
    found = {}
    for folder, package in homes.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports(path: Path, *, anywhere: bool) -> set[str]:
    """Imported module names: everywhere in the file, or only what importing it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(prefix: str, *, among: str) -> list[str]:
    """Modules under ``among`` that import anything under ``prefix``, anywhere in their code."""
    return [
        name
        for name, path in modules().items()
        if f"{name}.".startswith(f"{among}.")
        and any(f"{m}.".startswith(f"{prefix}.") for m in imports(path, anywhere=True))
    ]


def test_the_map_of_modules_is_complete() -> None:
    assert {"d3llm_trt.cli", "d3llm_trt.build.builder", "d3llm_trt.runtime.decoding.step"} <= modules().keys()
    assert importers("torch", among="d3llm_trt.runtime")


@pytest.mark.parametrize(
    ("user", "used"),
    [
        ("d3llm_trt.build", "d3llm_trt.runtime"),
        ("d3llm_trt.runtime", "d3llm_trt.build"),
        ("d3llm_trt.plugins", "d3llm_trt.model"),
        ("d3llm_trt.plugins", "d3llm_trt.build"),
        ("d3llm_trt.plugins", "d3llm_trt.runtime"),
        ("d3llm_trt.model", "d3llm_trt.build"),
        ("d3llm_trt.model", "d3llm_trt.runtime"),
        ("d3llm_trt.build", "d3llm_trt.cli"),
        ("d3llm_trt.runtime", "d3llm_trt.cli"),
        ("d3llm_trt.config", "d3llm_trt.model"),
        ("d3llm_trt.errors", "d3llm_trt"),
    ],
)
def test_rooms_import_one_way(user: str, used: str) -> None:
    assert importers(used, among=user) == []


def test_one_module_imports_tensorrt() -> None:
    """By name, so that it is found out when it is asked for; nobody else names it."""
    users = {user for name in TENSORRT for user in importers(name, among="d3llm_trt")}
    namers = {name for name, path in modules().items() if "tensorrt_rtx" in path.read_text(encoding="utf-8")}
    assert users == set() and namers == {"d3llm_trt.tensorrt_module"}


def test_everything_imports_without_tensorrt() -> None:
    # One module is imported by Triton's Python backend only, and needs what is there.
    names = sorted(modules().keys() - {"d3llm_trt.runtime.triton.model"})
    code = "import sys; from importlib import import_module\n"
    code += f"sys.modules.update(dict.fromkeys({TENSORRT!r}))\n"
    code += f"[import_module(name) for name in {names!r}]; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "d3llm_trt",
        *(f"d3llm_trt.{name}" for name in ("cli", "cli_build", "cli_generate", "cli_triton", "cli_types", "config")),
    ],
)
def test_the_front_door_imports_nothing_heavy(name: str) -> None:
    roots = {module.split(".")[0] for module in imports(modules()[name], anywhere=False)}
    assert roots.isdisjoint({"torch", "numpy", "safetensors", "tokenizers", "rich", "matplotlib"})
