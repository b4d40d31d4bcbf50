"""The compiled kernels as Python sees them: struct layouts, and how the library is found."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from d3llm_trt.errors import PluginError
from d3llm_trt.plugins import c_structs, library

HEADER = Path(library.__file__).parent / "c_api" / "d3llm_kernels.h"


def header_fields() -> dict[str, list[str]]:
    """The fields of every struct, as the preprocessor leaves them."""
    text = subprocess.run(["gcc", "-E", "-P", HEADER], check=True, capture_output=True, text=True).stdout
    found = re.findall(r"typedef struct (d3llm_\w+) \{(.*?)\}", text, flags=re.DOTALL)
    return {name: re.findall(r"(\w+);", body) for name, body in found}


def mirror(struct: str) -> type[ctypes.Structure]:
    """Of ``d3llm_rms_norm_params``: RmsNormParams."""
    found: type[ctypes.Structure] = getattr(c_structs, struct.removeprefix("d3llm").title().replace("_", ""))
    return found


def layouts_of_the_compiler(folder: Path) -> str:
    lines = []
    for struct, fields in header_fields().items():
        lines.append(f'printf("{struct} %zu\\n", sizeof({struct}));')
        for field in fields:
            place = f"offsetof({struct}, {field}), sizeof((({struct}*)0)->{field})"
            lines.append(f'printf("{struct}.{field} %zu %zu\\n", {place});')
    source, program = folder / "layouts.c", folder / "layouts"
    source.write_text('#include <stdio.h>\n#include "d3llm_kernels.h"\nint main(void) {' + "\n".join(lines) + "}\n")
    subprocess.run(["gcc", "-std=c99", "-Wall", "-Werror", f"-I{HEADER.parent}", source, "-o", program], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_structs_are_laid_out_as_the_header_is_compiled(tmp_path: Path) -> None:
    lines = []
    for name in header_fields():
        struct = mirror(name)
        lines.append(f"{name} {ctypes.sizeof(struct)}")
        for field, *_ in struct._fields_:
            place = getattr(struct, field)
            lines.append(f"{name}.{field} {place.offset} {place.size}")
    assert layouts_of_the_compiler(tmp_path).splitlines() == lines


def test_every_launcher_of_the_header_is_known() -> None:
    declared = re.findall(r"d3llm_status d3llm_(\w+)\(const (\w+)\* params", HEADER.read_text())
    assert {name: mirror(params) for name, params in declared} == c_structs.LAUNCHERS


def test_struct_size_is_filled_in() -> None:
    assert c_structs.SelectParams(rows=3).struct_size == ctypes.sizeof(c_structs.SelectParams)


def test_a_missing_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert not library.available()
    with pytest.raises(PluginError, match=r"libd3llm_kernels.so in .*make plugins"):
        library.find()


def test_a_library_that_was_asked_for_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(PluginError, match=r"D3LLM_TRT_LIBRARY is .*none.*make plugins"):
        library.available()


@pytest.mark.parametrize("name", [library.KERNELS, library.TENSORRT])
def test_the_variable_names_the_folder_or_the_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (library.KERNELS, library.TENSORRT):
        (tmp_path / file).touch()
    for value in (tmp_path, tmp_path / library.KERNELS):
        monkeypatch.setenv(library.VARIABLE, str(value))
        assert library.find(name) == tmp_path / name


def test_what_is_no_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / library.KERNELS).write_text("text")
    monkeypatch.setenv(library.VARIABLE, str(tmp_path))
    with pytest.raises(PluginError, match="cannot be loaded"):
        library.load.__wrapped__()
