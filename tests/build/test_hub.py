"""Models by their name on the Hub: a stand-in on loopback, the cache folder, and what is said when something lacks."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from d3llm_trt import LLM, build_engine
from d3llm_trt.cli.main import cli
from d3llm_trt.errors import CheckpointError, ConfigError, D3llmError
from d3llm_trt.manifest import load_manifest
from tests.support.checkpoints import edit_config, make_checkpoint
from tests.support.hub import Hub, running_hub
from tests.support.processes import COMMAND
from tests.support.tiny_models import CHECKPOINTS

pytest.importorskip("huggingface_hub")
NAME = "d3llm/tiny-dream"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty hub, an empty cache, and nothing else in the environment."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "engines"))
    monkeypatch.chdir(tmp_path)
    for collection in (server.commits, server.refs, server.failing, server.asked, server.slow):
        collection.clear()
    return server


@pytest.fixture
def dream(hub: Hub, tmp_path: Path) -> Path:
    """The tiny checkpoint as it is published: with code, other formats and pictures beside what is needed."""
    folder = Path(shutil.copytree(CHECKPOINTS["dream"], tmp_path / "published"))
    for name in (
        "modeling_dream.py",
        "pytorch_model.bin",
        "README.md",
        "a.png",
        "onnx/model.safetensors",
        "x/config.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise SystemExit('code was run')")
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text(published_template(folder))
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(published_template(folder) + "{# #}")
    hub.add(NAME, folder, "main")
    return folder


def published_template(folder: Path) -> str:
    return str(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"])


def small(path: Path, seed: int = 0, **options: Any) -> Path:
    return make_checkpoint(path, "dream", seed=seed, hidden=16, layers=1, intermediate=24, vocab=40, **options)


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="d3llm-trt")


def refusal(model: str = NAME, **options: Any) -> str:
    with pytest.raises(D3llmError) as caught:
        build_engine(model, "refused", **options)
    assert not Path("refused").exists() and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_is_downloaded_and_built_without_what_is_not_needed(hub: Hub, dream: Path, tmp_path: Path) -> None:
    engine = build_engine(NAME, tmp_path / "engine")
    expected = load_manifest(build_engine(CHECKPOINTS["dream"], tmp_path / "local"))
    built = load_manifest(engine)
    assert (built.files, built.model_config) == (expected.files, expected.model_config)
    needed = {
        "config.json", "generation_config.json", "model.safetensors", "vocab.json", "merges.txt",
        "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    }  # fmt: skip
    assert sorted(hub.asked) == sorted(f"{NAME}/{name}" for name in needed)
    assert hub.asked[-1] == f"{NAME}/model.safetensors"
    hub.asked.clear()
    build_engine(NAME, tmp_path / "again")
    assert hub.asked == []


def test_llm_and_the_command_line_take_names_too(hub: Hub, dream: Path, tmp_path: Path) -> None:
    with LLM(NAME, device="cpu") as llm:
        assert llm.generate("Hi")[0].error is None
    result = run("build", f"{NAME}@main", "-o", tmp_path / "engine", "--json")
    assert result.exit_code == 0 and '"kind": "engine"' in result.stdout
    result = run("generate", NAME, "Hi", "--max-tokens", "4", "--device", "cpu", "--revision", "main", "--json")
    assert result.exit_code == 0 and '"error": null' in result.stdout
    assert hub.asked.count(f"{NAME}/model.safetensors") == 1


def test_shards_are_those_of_the_index(hub: Hub, tmp_path: Path) -> None:
    folder = small(tmp_path / "published", shards=3)
    (folder / "model-extra.safetensors").write_bytes(b"not needed")
    hub.add(NAME, folder, "main")
    build_engine(NAME, tmp_path / "engine")
    assert len([name for name in hub.asked if ".safetensors" in name]) == 4  # the index among them
    assert f"{NAME}/model-extra.safetensors" not in hub.asked


def test_revisions_are_branches_tags_and_commits(hub: Hub, tmp_path: Path) -> None:
    folders = [small(tmp_path / f"published{seed}", seed) for seed in range(3)]
    wanted = [load_manifest(build_engine(folder, tmp_path / f"local{at}")).files for at, folder in enumerate(folders)]
    commits = [hub.add(NAME, folder, name) for folder, name in zip(folders, ("main", "v1.0", "refs/pr/1"), strict=True)]
    calls = [(NAME, None, 0), (f"{NAME}@v1.0", None, 1), (NAME, "v1.0", 1), (f"{NAME}@v1.0", "v1.0", 1)]
    calls += [(f"{NAME}@{commits[1]}", None, 1), (NAME, commits[0], 0)]
    for number, (model, revision, at) in enumerate(calls):
        engine = build_engine(model, tmp_path / f"engine{number}", revision=revision)
        assert load_manifest(engine).files == wanted[at], (model, revision)


def test_a_branch_that_moves_is_followed(hub: Hub, tmp_path: Path) -> None:
    hub.add(NAME, small(tmp_path / "published0", 0), "main")
    before = load_manifest(build_engine(NAME, tmp_path / "before"))
    hub.add(NAME, small(tmp_path / "published1", 1), "main")
    after = load_manifest(build_engine(NAME, tmp_path / "after"))
    assert before.files != after.files and before.checkpoint_fingerprint != after.checkpoint_fingerprint


def test_a_local_directory_wins(hub: Hub, dream: Path, tmp_path: Path) -> None:
    local = small(tmp_path / NAME)
    assert load_manifest(build_engine(NAME, tmp_path / "engine")).model_config.hidden_size == 16
    assert hub.asked == []
    assert f"revision is 'main', but {NAME} is no model of the Hub" in refusal(revision="main")
    assert "no model of the Hub" in refusal(str(local), revision="main")
    build_engine(f"{NAME}@main", tmp_path / "other")
    assert hub.asked


# The cache and offline mode


def cached_by_hand(home: Path, folder: Path, commit: str = "0" * 40) -> Path:
    """The folder of a repository in the cache, as older versions of the library and other tools leave it."""
    root = home / "hub" / f"models--{NAME.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, root / "snapshots" / commit))


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_only_the_cache_is_used(
    hub: Hub, dream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    text = refusal()
    assert f"{NAME}: not a directory, and a whole snapshot is not in the Hub's cache; unset HF_HUB_OFFLINE" in text
    monkeypatch.delenv(variable)
    build_engine(NAME, tmp_path / "engine")
    hub.asked.clear()
    monkeypatch.setenv(variable, "1")
    build_engine(NAME, tmp_path / "again")
    assert "a whole snapshot is not in the Hub's cache" in refusal(f"{NAME}@other")
    assert hub.asked == []


def test_a_cache_made_by_others_is_used_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    snapshot = cached_by_hand(tmp_path / "home", small(tmp_path / "published", shards=2))
    build_engine(NAME, tmp_path / "engine")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert "is not in the Hub's cache" in refusal()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    build_engine(NAME, tmp_path / "other")
    shard = sorted(snapshot.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"{shard.name} is not in the Hub's cache; unset HF_HUB_OFFLINE to download it" in refusal()


def test_without_a_network_the_cache_is_used(
    hub: Hub, dream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engine(NAME, tmp_path / "engine")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        build_engine(NAME, tmp_path / "again")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
        begin = time.monotonic()
        text = refusal()
        assert time.monotonic() - begin < 10
    assert f"{NAME}: not a directory, and the Hub cannot be reached: " in text and "check the network" in text


# What can be wrong


def test_without_the_extra_there_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert refusal() == f"{NAME}: no such directory; to take it from the Hub: pip install 'd3llm-trt[hub]'"
    result = run("generate", NAME, "Hi")
    assert result.exit_code == 2 and "pip install 'd3llm-trt[hub]'" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "code", "parts"),
    [
        (401, "RepoNotFound", ["no such directory, and no such model on the Hub", "hf auth login"]),
        (403, "GatedRepo", ["its terms have to be accepted", "hf auth login"]),
        (429, "", ["the Hub answered with status 429"]),
        (503, "", ["the Hub answered with status 503", "try again later"]),
    ],
)
def test_what_the_hub_says_is_one_line(hub: Hub, dream: Path, status: int, code: str, parts: list[str]) -> None:
    hub.failing[NAME] = (status, code)
    text = refusal()
    assert all(part in text for part in (f"{NAME}: ", *parts)), text


def test_names_and_revisions_that_are_not_there(hub: Hub, dream: Path) -> None:
    assert "no such model on the Hub" in refusal("nobody/nothing")
    text = refusal(f"{NAME}@v9")
    assert f"{NAME}@v9: the Hub has no revision 'v9' of it" in text
    with pytest.raises(ConfigError, match="revision is 'a', but the model is 'd3llm/tiny-dream@b'"):
        build_engine(f"{NAME}@b", "refused", revision="a")


@pytest.mark.parametrize("name", ["a--b/c", "org/name.git", f"org/{'n' * 97}"])
def test_names_that_the_hub_cannot_have(hub: Hub, name: str) -> None:
    assert f"{name}: no such directory, and no name that the Hub can have" in refusal(name)


@pytest.mark.parametrize("revision", ["", " ", 7, ["main"]])
def test_revisions_of_another_type(hub: Hub, dream: Path, revision: Any) -> None:
    assert f"revision is {revision!r}; allowed: None, or a branch" in refusal(revision=revision)


@pytest.mark.parametrize(
    "name", ["missing", "./a/b", "/a/b", "a/b/c", "~/a", "a/", "../a", "a/b@", "a b/c", ".hidden/a"]
)
def test_what_is_meant_as_a_directory_is_not_asked_for(hub: Hub, name: str) -> None:
    with pytest.raises(CheckpointError, match="no such directory; expected a Hugging Face checkpoint directory"):
        build_engine(name, "refused")


def test_a_wrong_configuration_is_refused_before_the_weights_come(hub: Hub, dream: Path) -> None:
    edit_config(dream, hidden_act="relu", use_mrope=True)
    with pytest.raises(CheckpointError, match="hidden_act is 'relu'"):
        build_engine(NAME, "refused")
    assert not any(name.endswith(".safetensors") for name in hub.asked)


def test_an_adapter_is_refused_before_the_weights_come(hub: Hub, dream: Path) -> None:
    (dream / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    (dream / "config.json").unlink()
    assert "a LORA adapter for org/base" in refusal()
    assert not any(name.endswith(".safetensors") for name in hub.asked)


def test_weights_in_another_format_are_named(hub: Hub, dream: Path) -> None:
    (dream / "model.safetensors").unlink()
    assert "the Hub has no model.safetensors of it; give a checkpoint in safetensors" in refusal()


def test_a_cache_that_cannot_be_written_is_named(
    hub: Hub, dream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    text = refusal()
    assert "the Hub's cache cannot be written: Not a directory" in text and "set HF_HOME to another directory" in text


def test_nothing_is_drawn_where_nobody_sees_it(hub: Hub, dream: Path, tmp_path: Path) -> None:
    result = run("build", NAME, "-o", tmp_path / "engine")
    assert result.exit_code == 0 and result.stderr.count("\n") == 1 and "at run time: weights" in result.stderr


def test_a_signal_ends_a_download_at_once(hub: Hub, dream: Path, tmp_path: Path) -> None:
    hub.slow.append("model.safetensors")
    process = subprocess.Popen([*COMMAND, "build", NAME, "-o", str(tmp_path / "engine")], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while f"{NAME}/model.safetensors" not in hub.asked:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143 and b"Traceback" not in err
    assert not (tmp_path / "engine").exists()
