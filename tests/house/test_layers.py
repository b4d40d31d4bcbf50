"""Who may import whom, by rank, and that nothing heavy is imported early."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.support.tiny_models import ROOT

TENSORRT = ("tensorrt", "tensorrt_rtx")
# From the ground up: a room imports from its own floor and from those below. The longest prefix decides.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "version", "termination", "dtypes"),
    ("lookalikes", "workspaces", "write_errors", "strict_json", "settings", "files", "progress", "gpus"),
    ("tensorrt_module", "tensorrt_objects"),
    ("config",),
    ("plugins",),
    ("model",),
    ("manifest", "capacity", "tokenizer", "tokenizer_files", "prompts", "prompt_files"),
    ("build", "runtime.engines.base"),
    ("runtime.decoding", "engine_source"),
    ("runtime.engines",),
    ("runtime.stepping",),
    ("runtime",),
    ("serving", "bench"),
    ("cli",),
)  # fmt: skip
RANKS = {f"d3llm_trt.{room}": rank for rank, floor in enumerate(FLOORS) for room in floor}
FRONT_DOOR = ("d3llm_trt", "d3llm_trt.__main__")  # names that are loaded on first use


def modules() -> dict[str, str]:
    """The source of every module of the package by its name; the links in the package lead to every room."""
    package = ROOT / "d3llm_trt"
    folders = [package, *(path for path in package.iterdir() if path.is_symlink())]
    found = {}
    for path in {file for folder in folders for file in folder.rglob("*.py")}:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path.read_text(encoding="utf-8")
    return found


MODULES = modules()


def imports(source: str, *, anywhere: bool) -> set[str]:
    """Imported module names: everywhere in the file, or only what importing it imports."""
    tree = ast.parse(source)
    names: set[str] = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def rank(module: str) -> int:
    """The floor of a module."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(RANKS[prefix] for prefix in prefixes if prefix in RANKS)


def test_the_map_of_modules_is_complete() -> None:
    assert {"d3llm_trt.cli.main", "d3llm_trt.build.builder", "d3llm_trt.runtime.decoding.step"} <= MODULES.keys()
    assert all(name in FRONT_DOOR or rank(name) >= 0 for name in MODULES)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - set(FRONT_DOOR)))
def test_no_import_goes_up(name: str) -> None:
    used = {other for other in imports(MODULES[name], anywhere=True) if other in MODULES and other != "d3llm_trt"}
    assert {other for other in used if rank(other) > rank(name)} == set()


@pytest.mark.parametrize(("user", "used"), [("build", "runtime"), ("runtime", "build"), ("bench", "serving")])
def test_neighbours_do_not_know_each_other(user: str, used: str) -> None:
    users = [name for name in MODULES if f"{name}.".startswith(f"d3llm_trt.{user}.")]
    assert users
    for name in users:
        assert not any(f"{m}.".startswith(f"d3llm_trt.{used}.") for m in imports(MODULES[name], anywhere=True)), name


def test_decoding_is_pure() -> None:
    """Of its parent it knows only what an engine is."""
    for name, source in MODULES.items():
        if name.startswith("d3llm_trt.runtime.decoding"):
            used = {other for other in imports(source, anywhere=True) if other.startswith("d3llm_trt.runtime")}
            outside = {other for other in used & MODULES.keys() if not other.startswith("d3llm_trt.runtime.decoding")}
            assert outside <= {"d3llm_trt.runtime.engines.base"}, name


def test_one_module_imports_tensorrt() -> None:
    """By name, so that it is found out when it is asked for; nobody else names it."""
    users = {name for name, source in MODULES.items() if imports(source, anywhere=True) & set(TENSORRT)}
    namers = {name for name, source in MODULES.items() if "tensorrt_rtx" in source}
    assert users == set() and namers == {"d3llm_trt.tensorrt_module"}


def test_everything_imports_without_tensorrt() -> None:
    # One module is imported by Triton's Python backend only, and needs what is there.
    names = sorted(MODULES.keys() - {"d3llm_trt.serving.triton.model", "d3llm_trt.__main__"})
    code = "import sys; from importlib import import_module\n"
    code += f"sys.modules.update(dict.fromkeys({TENSORRT!r}))\n"
    code += f"[import_module(name) for name in {names!r}]; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name", ["d3llm_trt", "d3llm_trt.config", *(name for name in sorted(MODULES) if name.startswith("d3llm_trt.cli"))]
)
def test_the_front_door_imports_nothing_heavy(name: str) -> None:
    roots = {module.split(".")[0] for module in imports(MODULES[name], anywhere=False)}
    allowed = {"rich"} if name == "d3llm_trt.cli.watch" else set()
    assert roots.isdisjoint({"torch", "numpy", "safetensors", "tokenizers", "rich", "matplotlib"} - allowed)
