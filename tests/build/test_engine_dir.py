"""Engine directories: the manifest, damage, foreign directories, overwriting, full disks and the shared cache."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from d3llm_trt import workspaces
from d3llm_trt.build import builder
from d3llm_trt.build.builder import build_engine
from d3llm_trt.build.cached import build_cached_engine
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.config import BuildConfig, EngineConfig, TensorRTConfig
from d3llm_trt.errors import BuildError, CheckpointError, ConfigError, EngineError
from d3llm_trt.files import cache_directory
from d3llm_trt.manifest import FORMAT_VERSION, MANIFEST_FILE, Manifest, load_manifest, verify_files, write_manifest
from d3llm_trt.settings import from_mapping
from tests.support.checkpoints import make_checkpoint
from tests.support.tiny_tokenizers import write_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("llada", "dream")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint", "dream", hidden=16, layers=1, vocab=40, intermediate=24)


@pytest.fixture
def engine(checkpoint: Path, tmp_path: Path) -> Path:
    return build_engine(checkpoint, tmp_path / "engine")


def checked(path: Path) -> Manifest:
    manifest = load_manifest(path)
    verify_files(path, manifest)
    return manifest


def refusal(path: Path) -> str:
    with pytest.raises(EngineError) as caught:
        checked(path)
    return str(caught.value)


def hidden_names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name.startswith("."))


# What is built


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_engine_holds_the_packed_weights(tmp_path: Path, family: str, dtype: str) -> None:
    calls: list[tuple[str, int, int]] = []
    source = GOLDEN / f"{family}_tiny"
    path = build_engine(
        source, tmp_path / "new" / "engine", BuildConfig(dtype=dtype), progress=lambda *call: calls.append(call)
    )
    manifest, opened = checked(path), open_checkpoint(source)
    assert manifest.model_config == opened.config
    assert manifest.build_config == BuildConfig(dtype=dtype).resolved(512, "float32")
    assert manifest.checkpoint_fingerprint == opened.fingerprint
    weights = load_file(path / "rank0.safetensors")
    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    for name, tensor in opened.packed_tensors():
        assert torch.equal(weights.pop(name), tensor.to(wanted))
    assert not weights
    total = len(opened.config.tensor_shapes())
    assert calls == [("pack weights", done, total) for done in range(1, total + 1)]


def test_builds_are_reproducible(checkpoint: Path, engine: Path, tmp_path: Path) -> None:
    again = build_engine(checkpoint, tmp_path / "again")
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in engine.iterdir()}


def test_the_tokenizer_is_part_of_the_engine(checkpoint: Path, tmp_path: Path) -> None:
    write_tokenizer(checkpoint, "dream")
    tokenizer_size = len(json.loads((checkpoint / "vocab.json").read_text(encoding="utf-8")))
    with pytest.raises(CheckpointError):  # the model has fewer rows than the tokenizer has tokens
        build_engine(checkpoint, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
    assert tokenizer_size > 40
    assert not hidden_names(tmp_path)


def test_a_value_beyond_float16_is_named(checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(BuildError, match=r"'float16'.*final_norm\.weight; choose bfloat16 or float32"):
        build_engine(checkpoint, tmp_path / "engine", BuildConfig(dtype="float16"))
    assert not hidden_names(tmp_path)


def test_bad_input_is_refused_before_anything_is_written(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_seq_len is 1000"):
        build_engine(checkpoint, tmp_path / "deep" / "engine", BuildConfig(max_seq_len=1000))
    with pytest.raises(CheckpointError, match="nowhere"):
        build_engine(tmp_path / "nowhere", tmp_path / "deep" / "engine")
    assert not (tmp_path / "deep").exists()


# Damage


def test_the_manifest_survives_a_round_trip(engine: Path, tmp_path: Path) -> None:
    manifest = load_manifest(engine)
    write_manifest(tmp_path, manifest)
    assert load_manifest(tmp_path) == manifest
    assert manifest.format_version == FORMAT_VERSION
    assert manifest.backend == "torch"


def test_damage_to_each_file_is_named(engine: Path) -> None:
    for path in sorted(engine.iterdir()):
        data = path.read_bytes()
        for position in (0, len(data) // 2, len(data) - 2):
            changed = bytearray(data)
            changed[position] ^= 2
            path.write_bytes(changed)
            assert path.name in refusal(engine)
        path.write_bytes(data[:-1])
        if path.name != MANIFEST_FILE:  # its last byte is a newline, which means nothing
            assert path.name in refusal(engine)
        path.unlink()
        assert path.name in refusal(engine)
        path.mkdir()
        assert path.name in refusal(engine)
        path.rmdir()
        path.write_bytes(data)
    checked(engine)


def test_every_bit_of_the_manifest_counts(engine: Path) -> None:
    path = engine / MANIFEST_FILE
    data, manifest = path.read_bytes(), load_manifest(engine)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            assert load_manifest(engine) == manifest  # white space
        except EngineError as error:
            assert str(engine) in str(error)


def edited(engine: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((engine / MANIFEST_FILE).read_text(encoding="utf-8"))
    change(values)
    (engine / MANIFEST_FILE).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(format_version=2), ["format version is 2", "reads 1", "upgrade"]),
        (lambda v: v.update(format_version=0), ["format version is 0", "reads 1", "build the engine again"]),
        (lambda v: v.update(format_version="1"), ["format version is '1'"]),
        (lambda v: v.update(format="onnx"), ["format is 'onnx'"]),
        (lambda v: v.pop("format"), ["format is None"]),
        (lambda v: v.pop("files"), ["missing", "'files'"]),
        (lambda v: v.update(new=1), ["unknown", "'new'"]),
        (lambda v: v.update(files=[]), ["files is []"]),
        (lambda v: v["pretrained_config"].update(rope_theta=10000.0), ["changed after the build"]),
        (lambda v: (v.clear(), v.update(architectures=["DreamModel"])), ["Hugging Face checkpoint", "build it first"]),
    ],
)  # fmt: skip
def test_foreign_and_edited_manifests(
    engine: Path, change: Callable[[dict[str, Any]], object], words: list[str]
) -> None:
    edited(engine, change)
    text = refusal(engine)
    assert all(word in text for word in words), text


STORED = {
    "backend": "torch", "dtype": "float16", "max_batch_size": 2, "max_seq_len": 64, "max_num_tokens": 128,
    "quantization": None, "calibration_prompts": None, "tensorrt": None,
}  # fmt: skip
STORED_OPTIONS = {
    "attention": "native", "attention_mask": "lengths", "token_buckets": (32, 64),
    "compute_capabilities": ("8.6", "8.9", "12.0"), "optimization_level": 3, "workspace_gib": None,
    "version_compatible": False, "hardware_compatible": False, "weight_streaming": False, "strip_weights": False,
    "timing_cache": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "stored"),
    [
        (BuildConfig(dtype="float16", max_batch_size=2), STORED),
        (
            BuildConfig("tensorrt-rtx", "float16", 2, tensorrt=TensorRTConfig(token_buckets=(32,))),
            {**STORED, "backend": "tensorrt-rtx", "tensorrt": STORED_OPTIONS},
        ),
    ],
)
def test_settings_keep_their_form(wish: BuildConfig, stored: dict[str, Any]) -> None:
    """Key by key, in the order of every engine of this format, and a resolved configuration is its own wish."""
    answer = wish.resolved(64, "bfloat16")
    assert json.dumps(answer.to_dict()) == json.dumps(stored)
    assert from_mapping(EngineConfig, json.loads(json.dumps(stored)), "build_config") == answer
    assert answer.resolved(64, "bfloat16") == answer


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(max_seq_len=None), "max_seq_len is None"),
        (lambda v: v.pop("max_num_tokens"), "max_num_tokens is None"),
        (lambda v: v.update(dtype="auto"), "dtype is 'auto'"),
        (lambda v: v.update(tensorrt={**STORED_OPTIONS}), "tensorrt is PlanConfig"),
        (lambda v: v.update(backend="tensorrt"), "tensorrt is None; allowed: options of a plan"),
        (lambda v: v.update(backend="tensorrt", tensorrt={"attention": "native"}), "token_buckets is None"),
        (lambda v: v.update(tensorrt={**STORED_OPTIONS, "attention": None}), "attention is None"),
    ],
)
def test_a_manifest_that_leaves_something_open(engine: Path, change: Callable[[Any], object], words: str) -> None:
    edited(engine, lambda values: (change(values["build_config"]), seal(values)))
    assert words in refusal(engine)


def test_a_manifest_without_the_checksum_of_its_plugin(engine: Path) -> None:
    edited(engine, lambda values: (values.update(plugin={"version": "1"}), seal(values)))
    assert "plugin: sha256 is missing" in refusal(engine)


def seal(values: dict[str, Any]) -> None:
    """Give edited values the checksum that goes with them."""
    from d3llm_trt.manifest import _checksum

    del values["checksum"]
    values["checksum"] = _checksum(values)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".hidden", "config.json", "a\0b", "x" * 300])
def test_hostile_file_names(engine: Path, name: str) -> None:
    def change(values: dict[str, Any]) -> None:
        values["files"][name] = values["files"]["rank0.safetensors"]
        seal(values)

    edited(engine, change)
    assert "not a plain file name" in refusal(engine)


def test_things_that_are_not_engines(tmp_path: Path, checkpoint: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "not a directory" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty")
    assert f"d3llm-trt build {checkpoint}" in refusal(checkpoint)
    for data in (b"", b"\xff", b"[]", b'{"format": 1, "format": 2}'):
        (tmp_path / "empty" / "config.json").write_bytes(data)
        assert "config.json" in refusal(tmp_path / "empty")


# Targets


def test_what_is_there_is_not_replaced_unasked(checkpoint: Path, engine: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="there is an engine already"):
        build_engine(checkpoint, engine)
    (tmp_path / "file").write_text("mine")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(BuildError, match="there is a file of this name"):
            build_engine(checkpoint, tmp_path / "file", overwrite=overwrite)
        with pytest.raises(BuildError, match="not an engine"):
            build_engine(checkpoint, mine, overwrite=overwrite)
        with pytest.raises(BuildError, match="not an engine"):
            build_engine(checkpoint, checkpoint, overwrite=overwrite)
    (engine / "notes").write_text("mine")
    with pytest.raises(BuildError, match="notes is not part of the engine"):
        build_engine(checkpoint, engine, overwrite=True)
    assert (engine / "notes").read_text() == (mine / "notes").read_text() == "mine"


def test_targets_that_can_be_used(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    checked(build_engine(checkpoint, tmp_path / "empty"))
    (tmp_path / "link").symlink_to("empty")
    build_engine(checkpoint, tmp_path / "link", BuildConfig(max_batch_size=3), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert checked(tmp_path / "empty").build_config.max_batch_size == 3
    checked(build_engine(checkpoint, tmp_path / ("x" * 255)))
    monkeypatch.chdir(tmp_path)
    checked(build_engine("checkpoint", "relative"))
    assert not hidden_names(tmp_path)


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting(checkpoint: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(workspaces, "exchange", lambda first, second: False)
    build_engine(checkpoint, engine, BuildConfig(max_batch_size=2), overwrite=True)
    assert checked(engine).build_config.max_batch_size == 2
    edited(engine, lambda values: values.update(format_version=99))
    build_engine(checkpoint, engine, BuildConfig(max_batch_size=4), overwrite=True)
    assert checked(engine).build_config.max_batch_size == 4
    assert not hidden_names(engine.parent)


# Failures while writing


def failing(error: BaseException, after: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == after:
            raise error

    return progress


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()]
)
def test_a_failed_build_leaves_nothing(checkpoint: Path, tmp_path: Path, error: BaseException, overwrite: bool) -> None:
    target = tmp_path / "engine"
    if overwrite:
        build_engine(checkpoint, target)
    raised = BuildError if isinstance(error, OSError) else type(error)
    with pytest.raises(raised) as caught:
        build_engine(checkpoint, target, BuildConfig(max_batch_size=2), overwrite=True, progress=failing(error, 4))
    if raised is BuildError:
        assert "No space left on device" in str(caught.value)
        assert "free some space" in str(caught.value)
    assert not hidden_names(tmp_path)
    assert target.exists() == overwrite
    if overwrite:
        assert checked(target).build_config.max_batch_size == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, *rest: Any) -> Any:
        path.symlink_to("/dev/full")
        return original(path, *rest)

    original = builder.write_weights
    monkeypatch.setattr(builder, "write_weights", write)
    with pytest.raises(BuildError, match="No space left on device"):
        build_engine(checkpoint, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
    assert not hidden_names(tmp_path)


def test_too_little_space_is_found_first(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10, 9, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(BuildError, match="and 1 bytes are free on the disk; free some space"):
        build_engine(checkpoint, tmp_path / "engine")
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match="and 1 bytes are free on the disk; free some space"):
        build_cached_engine(checkpoint)


# The cache


def test_the_cache_key_is_everything_the_engine_is_made_from(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "cache"))
    stages: list[str] = []
    first = build_cached_engine(checkpoint, progress=lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"pack weights"}
    stages.clear()
    assert build_cached_engine(checkpoint, BuildConfig(dtype="float32"), lambda *call: stages.append(call[0])) == first
    assert set(stages) == {"verify"}
    assert build_cached_engine(checkpoint, BuildConfig(max_batch_size=2)) != first
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    assert build_cached_engine(copy) == first
    # A file that the tokenizer converter reads, though it is no part of the fingerprint.
    monkeypatch.setattr("d3llm_trt.build.tokenizer.convert_tokenizer", lambda *args: [])
    (copy / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    assert build_cached_engine(copy) != first


@pytest.mark.parametrize("name", ["config.json", "rank0.safetensors"])
def test_a_damaged_entry_is_built_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "cache"))
    entry = build_cached_engine(checkpoint)
    for damage in (b"", b"{}", b"x" * 100):
        (entry / name).write_bytes(damage)
        assert build_cached_engine(checkpoint) == entry
        checked(entry)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("D3LLM_TRT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_directory() == tmp_path / ".cache" / "d3llm-trt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "d3llm-trt"
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    (tmp_path / "own").touch()
    with pytest.raises(BuildError, match="set D3LLM_TRT_CACHE"):
        build_cached_engine(checkpoint)


def build_from_cache(checkpoint: Path, cache: Path, barrier: Any, results: Any) -> None:
    os.environ["D3LLM_TRT_CACHE"] = str(cache)
    stages: set[str] = set()
    barrier.wait()
    path = build_cached_engine(checkpoint, progress=lambda stage, done, total: stages.add(stage))
    checked(path)
    results.put((str(path), sorted(stages)))


def test_two_processes_build_one_cached_engine(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "llada", hidden=128, layers=4)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (checkpoint, tmp_path / "cache", barrier, results)
    workers = [context.Process(target=build_from_cache, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    (first, one), (second, other) = results.get(timeout=60), results.get(timeout=60)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert first == second
    assert sorted([one, other]) == [["pack weights"], ["verify"]]
    assert not hidden_names(tmp_path / "cache")
