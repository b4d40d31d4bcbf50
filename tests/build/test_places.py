"""Places that cannot be written: every cause has advice of its own, and is found before long work."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

# What is loaded later could not be read as another user.
import d3llm_trt.build.tokenizer
import d3llm_trt.cli.trace
import d3llm_trt.runtime.llm
from d3llm_trt import LLM, build_engine
from d3llm_trt.cli.main import cli
from d3llm_trt.errors import BuildError, CheckpointError, ConfigError, EngineError
from d3llm_trt.serving.triton.repository import write_repository
from tests.support.checkpoints import make_checkpoint
from tests.support.processes import COMMAND, as_nobody, open_folder, run_with_mount

CAUSES = {
    "EACCES": "Permission denied; change the permissions of that folder",
    "EPERM": "Operation not permitted; change the permissions of that folder",
    "EROFS": "Read-only file system; mount that file system for writing",
    "ENOENT": "No such file or directory; make the missing folder",
    "ENOTDIR": "Not a directory; correct the name, of which a part is a file and not a folder",
    "ENOSPC": "No space left on device; free some space",
    "EDQUOT": "Disk quota exceeded; free some space within your quota",
    "ENAMETOOLONG": "File name too long; choose a shorter name",
}
OTHERWISE = "choose another directory"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("places") / "checkpoint", "dream", hidden=32, layers=2)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Path:
    return build_engine(checkpoint, checkpoint.parent / "engine")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="d3llm-trt")


def failing(code: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        raise OSError(code, os.strerror(code))

    return progress


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_has_its_own_advice(checkpoint: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "deep" / "engine"
    with pytest.raises(BuildError) as caught:
        build_engine(checkpoint, target, progress=failing(getattr(errno, name)))
    assert str(caught.value) == f"{target}: cannot be written: {CAUSES[name]}, or {OTHERWISE}"
    assert list(tmp_path.iterdir()) == []


def test_another_cause_leads_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"Input/output error; {OTHERWISE}$"):
        build_engine(checkpoint, tmp_path / "engine", progress=failing(errno.EIO))


def never(stage: str, done: int, total: int) -> None:
    raise AssertionError(f"{stage} was begun")


def test_a_folder_without_permission_is_found_first(checkpoint: Path) -> None:
    with open_folder() as folder:
        copy = Path(shutil.copytree(checkpoint, folder / "checkpoint"))
        (copy / "model.safetensors").chmod(0o600)
        with as_nobody(), pytest.raises(CheckpointError, match=r"model.safetensors: .*denied; change its permissions"):
            build_engine(copy, folder / "engine")
        (copy / "model.safetensors").chmod(0o644)
        folder.chmod(0o555)
        with as_nobody(), pytest.raises(BuildError) as caught:
            build_engine(copy, folder / "new" / "engine", progress=never)
        assert f"Permission denied in {folder}; change the permissions of that folder" in str(caught.value)
        with as_nobody(), pytest.raises(ConfigError, match=r"Permission denied in .*; change the permissions"):
            d3llm_trt.cli.trace.check_trace_path(folder / "trace.html")
        folder.chmod(0o755)


def test_what_is_no_folder_is_found_first(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match=r"file/engine: cannot be written: Not a directory; correct the name"):
        build_engine(checkpoint, tmp_path / "file" / "engine", progress=never)
    with pytest.raises(BuildError, match="File name too long; choose a shorter name"):
        build_engine(checkpoint, tmp_path / ("n" * 300) / "engine", progress=never)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_no_space_is_not_blamed_where_nothing_can_be_written(checkpoint: Path) -> None:
    with pytest.raises(BuildError) as caught:  # it has no free bytes either
        build_engine(checkpoint, "/proc/engine", progress=never)
    assert "cannot be written" in str(caught.value) and "bytes are free" not in str(caught.value)


def test_a_mount_point_is_found_first(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"/proc: a mount point, which cannot be replaced; choose .* /proc/engine"):
        build_engine(checkpoint, "/proc", overwrite=True, progress=never)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    done = run_with_mount(f"mount -t tmpfs tmpfs {mounted}", [*COMMAND, "build", checkpoint, "-o", mounted])
    assert done.returncode == 2 and f"such as {mounted / 'engine'}" in done.stderr and done.stderr.count("\n") == 1
    done = run_with_mount(f"mount -t tmpfs tmpfs {mounted}", [*COMMAND, "build", checkpoint, "-o", mounted / "engine"])
    assert done.returncode == 0, done.stderr


def test_a_read_only_file_system_is_named(checkpoint: Path, tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o ro,size=1m tmpfs {tmp_path}"
    copy = Path(shutil.copytree(checkpoint, checkpoint.parent / "copy"))
    done = run_with_mount(mount, [*COMMAND, "build", copy, "-o", tmp_path / "new" / "engine"])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"Read-only file system in {tmp_path}; mount that file system for writing" in done.stderr


def test_a_small_disk_is_found_first(checkpoint: Path, tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    done = run_with_mount(mount, [*COMMAND, "build", checkpoint, "-o", tmp_path / "new" / "engine"])
    assert done.returncode == 2 and "bytes are free on the disk; free some space" in done.stderr


# The cache


def test_a_read_only_cache_that_has_the_engine_is_enough(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_folder() as folder:
        monkeypatch.setenv("D3LLM_TRT_CACHE", str(folder / "cache"))
        copy = Path(shutil.copytree(checkpoint, folder / "checkpoint"))
        (copy / "model.safetensors").chmod(0o644)
        with LLM(copy, device="cpu") as llm:
            expected = llm.generate({"prompt_token_ids": [1, 2]})[0].outputs[0].token_ids
        for path in (folder / "cache").rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        (folder / "cache").chmod(0o555)
        with as_nobody(), LLM(copy, device="cpu") as llm:
            assert llm.generate({"prompt_token_ids": [1, 2]})[0].outputs[0].token_ids == expected
        with as_nobody(), pytest.raises(BuildError) as caught:
            LLM(copy, device="cpu", max_batch_size=3)
        text = str(caught.value)
        assert "the cache cannot be used: Permission denied" in text and "set D3LLM_TRT_CACHE to a directory" in text


# Triton's repository


def damaged(engine: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(engine, tmp_path / "damaged"))
    (copy / "rank0.safetensors").write_bytes(b"")
    return copy


def test_a_repository_that_cannot_be_written_is_found_before_the_engine_is_read(engine: Path, tmp_path: Path) -> None:
    broken = damaged(engine, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory; correct the name"):
        write_repository(broken, tmp_path / "file" / "repository")
    with open_folder() as folder:
        folder.chmod(0o555)
        copy = Path(shutil.copytree(broken, folder.parent / f"{folder.name}-engine"))
        try:
            with as_nobody(), pytest.raises(ConfigError, match=r"Permission denied in .*change the permissions"):
                write_repository(copy, folder / "repository")
        finally:
            shutil.rmtree(copy)
    with pytest.raises(EngineError, match="damaged engine"):
        write_repository(broken, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def facts(model: Path) -> dict[str, Any]:
    return {str(path.relative_to(model)): path.stat().st_size for path in model.rglob("*") if path.is_file()}


def test_overwriting_a_model_replaces_what_was_written_here_alone(engine: Path, tmp_path: Path) -> None:
    args = ["triton", engine, "-o", tmp_path / "repository"]
    assert run(*args).exit_code == 0
    model = tmp_path / "repository" / "d3llm"
    before = facts(model)
    refused = run(*args, "--instances", "2")
    assert refused.exit_code == 2 and "there is a model already" in refused.stderr and "--overwrite" in refused.stderr
    (model / "1" / "__pycache__").mkdir()
    assert run(*args, "--instances", "2", "--overwrite").exit_code == 0
    assert "count: 2" in (model / "config.pbtxt").read_text() and facts(model).keys() == before.keys()
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["d3llm"]
    (model / "2").mkdir()
    refused = run(*args, "--overwrite")
    assert refused.exit_code == 2 and "2 was not written here" in refused.stderr
    (model / "2").rmdir()
    (model / "1" / "model.py").unlink()
    refused = run(*args, "--overwrite")
    assert refused.exit_code == 2 and "not a model that was written here" in refused.stderr
    assert "count: 2" in (model / "config.pbtxt").read_text()
    fresh = ["triton", engine, "-o", tmp_path / "fresh", "--overwrite"]
    assert run(*fresh).exit_code == 0


def test_validation_without_a_server_is_refused_before_anything_is_written(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("triton", engine, "-o", tmp_path / "repository", "--validate")
    assert result.exit_code == 2 and "--validate needs tritonserver on the PATH" in result.stderr
    assert not (tmp_path / "repository").exists()


# Pictures


def test_the_folder_of_a_picture_is_checked_before_the_model_is_opened(tmp_path: Path) -> None:
    result = run("generate", "model", "x", "--trace", tmp_path / "none" / "t.html")
    assert result.exit_code == 2 and "a file in a folder that exists; make the folder" in result.stderr
    (tmp_path / "t.html").mkdir()
    assert "this is a folder" in run("generate", "model", "x", "--trace", tmp_path / "t.html").stderr
