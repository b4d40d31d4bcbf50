"""Checkpoints as people have them: saved again, trained further, downloaded in part; built, or the true cause named."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from d3llm_trt import LLM, BuildConfig, build_engine
from d3llm_trt.cli.main import cli
from d3llm_trt.errors import CheckpointError, D3llmError
from d3llm_trt.manifest import load_manifest
from d3llm_trt.tokenizer import Tokenizer
from tests.support.checkpoints import INDEX_FILE, edit_config, make_checkpoint, tensor_shapes, write_tensors
from tests.support.tiny_models import CHECKPOINTS

FAMILIES = ("llada", "dream")
SIZES: dict[str, Any] = {"hidden": 16, "layers": 2, "heads": 2, "intermediate": 24, "vocab": 40}
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def small(path: Path, family: str = "dream", **options: Any) -> Path:
    return make_checkpoint(path / "checkpoint", family, **{**SIZES, **options})


def tiny(path: Path, family: str) -> Path:
    """A checkpoint with a tokenizer, to edit."""
    return Path(shutil.copytree(CHECKPOINTS[family], path / "checkpoint"))


def build(checkpoint: Path, **settings: Any) -> Path:
    return build_engine(checkpoint, checkpoint.parent / "engine", BuildConfig(**settings), overwrite=True)


def refusal(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        build(checkpoint)
    return str(caught.value)


def weights(engine: Path) -> dict[str, torch.Tensor]:
    return load_file(engine / "rank0.safetensors")


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys; a key set to ``...`` is removed."""
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}), encoding="utf-8")


def edit_tensors(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    write_tensors(checkpoint, tensors)


def warned(action: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in caught]


# RoPE

PLAIN: list[dict[str, Any]] = [
    {"rope_scaling": None},
    {"rope_scaling": ...},
    {"rope_scaling": {}},
    {"rope_scaling": {"rope_type": "default"}},
    {"rope_scaling": {"type": "default"}},
    {"rope_scaling": {"type": "default", "rope_type": "default", "rope_theta": 1000000}},
    {"rope_parameters": None},
    {"rope_parameters": {"rope_theta": 1e6}},
    {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_theta": ..., "rope_scaling": ...},
    {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default", "partial_rotary_factor": 1.0, "factor": None}},
    {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}, "rope_theta": None},
    {"rope_scaling": {"rope_theta": 1e6, "rope_type": "default"}, "rope_theta": ...},
    {"layer_types": ["full_attention", "full_attention"], "partial_rotary_factor": 1.0},
]
OTHER: list[tuple[dict[str, Any], list[str]]] = [
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling is", "'yarn'"]),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling is", "'linear'"]),
    ({"rope_scaling": {"type": "default", "rope_type": "llama3"}}, ["rope_scaling is", "'llama3'"]),
    ({"rope_scaling": {"type": "default", "mrope_section": [1, 2]}}, ["rope_scaling is", "mrope_section"]),
    ({"rope_scaling": "default"}, ["rope_scaling is 'default'", "an object"]),
    ({"rope_scaling": [{"type": "default"}]}, ["rope_scaling is", "an object"]),
    ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, ["rope_theta 1000000.0", "10000.0"]),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor of 0.5"]),
    ({"rope_parameters": {"a": {"rope_theta": 1e6}, "b": {"rope_theta": 1e4}}}, ["rope_parameters is", "10000.0"]),
    ({"rope_parameters": {"a": {"rope_type": "yarn"}}}, ["rope_parameters is", "'yarn'"]),
    ({"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"rope_theta": 1e5}}, ["rope_scaling is", "100000.0"]),
    ({"rope_theta": ..., "rope_parameters": {"rope_type": "default"}}, ["rope_theta is missing"]),
    ({"rope_theta": ..., "rope_parameters": {"rope_theta": "many"}}, ["rope_theta is 'many'"]),
    ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
    ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types is", "'full_attention' throughout"]),
]


@pytest.mark.parametrize("changes", PLAIN, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_rope_is_built_however_it_is_spelled(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    checkpoint = small(tmp_path, family)
    edit_config(checkpoint, rope_theta=1e6)
    edit_config(checkpoint, **changes)
    assert load_manifest(build(checkpoint)).model_config.rope_theta == 1e6


@pytest.mark.parametrize(("changes", "parts"), OTHER, ids=str)
def test_other_rope_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    checkpoint = small(tmp_path)
    edit_config(checkpoint, **changes)
    text = refusal(checkpoint)
    assert all(part in text for part in ("config.json: ", *parts)), text


def dream_config_class() -> Any:
    """A configuration class like the published one, which sets RoPE's values itself."""
    transformers = pytest.importorskip("transformers")

    class DreamConfig(transformers.PretrainedConfig):  # type: ignore[misc, name-defined]
        model_type = "Dream"

        def __init__(self, rope_theta: float = 10000.0, rope_scaling: Any = None, **rest: Any) -> None:
            self.rope_theta, self.rope_scaling = rope_theta, rope_scaling
            super().__init__(**{"tie_word_embeddings": False, **rest})

    return DreamConfig


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:.*rope_scaling:FutureWarning")
def test_a_checkpoint_saved_again_by_transformers_is_the_same_model(tmp_path: Path, family: str) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoint = tiny(tmp_path, family)
    before = build_engine(checkpoint, tmp_path / "before")
    cls = dream_config_class() if family == "dream" else transformers.PretrainedConfig
    config, tokenizer = cls.from_pretrained(checkpoint), transformers.AutoTokenizer.from_pretrained(checkpoint)
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            file.unlink()
    config.save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    assert (checkpoint / "chat_template.jinja").exists()
    assert warned(lambda: build(checkpoint)) == []
    after = tmp_path / "engine"
    assert load_manifest(after).model_config == load_manifest(before).model_config
    ours, theirs = Tokenizer.load(after), Tokenizer.load(before)
    assert ours is not None and theirs is not None and ours.config == theirs.config
    assert ours.encode("Hi, 12 boxes!") == theirs.encode("Hi, 12 boxes!")


# Ids that end an answer


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        (26, None, (26,)),
        ([26, 28], None, (26, 28)),
        ([28], None, (28,)),
        ([28, 26, 28], 26, (28, 26)),
        (26, 28, (26, 28)),
        (26, [28, 26, 29], (26, 28, 29)),
        (26, ..., (26,)),
        (26, {"temperature": 0.0}, (26,)),
        (..., [29, 28], (29, 28)),
        (None, 28, (28,)),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_end_ids_of_both_files_reach_the_engine(
    tmp_path: Path, family: str, config: Any, generation: Any, ends: tuple[int, ...]
) -> None:
    checkpoint = small(tmp_path, family)
    edit_config(checkpoint, eos_token_id=config)
    if generation is not None:
        values = generation if isinstance(generation, dict) else {"eos_token_id": generation}
        values = {} if generation is ... else values
        (checkpoint / "generation_config.json").write_text(json.dumps(values), encoding="utf-8")
    engine = build(checkpoint)
    model = load_manifest(engine).model_config
    assert (model.end_token_ids, model.eos_token_id) == (ends, ends[0])
    with LLM(engine, device="cpu") as llm:
        assert llm.spec.model_config.end_token_ids == ends


@pytest.mark.parametrize(
    ("config", "generation", "parts"),
    [
        ([], None, ["config.json: eos_token_id is []", "0..39, or a list of such ids"]),
        ([26, "28"], None, ["config.json: eos_token_id is [26, '28']"]),
        ([26, [28]], None, ["config.json: eos_token_id is [26, [28]]"]),
        ([26, True], None, ["config.json: eos_token_id is [26, True]"]),
        ([26, 40], None, ["config.json: eos_token_id is [26, 40]"]),
        ([26, 36], None, ["config.json: mask_token_id is 36", "another id"]),
        (26, [36], ["config.json: mask_token_id is 36", "another id"]),
        (26, [26, -1], ["generation_config.json: eos_token_id is [26, -1]"]),
        (26, 400, ["generation_config.json: eos_token_id is 400", "0..39"]),
        (None, None, ["config.json: eos_token_id is None", "here or in generation_config.json"]),
    ],
)
def test_wrong_end_ids_are_named(tmp_path: Path, config: Any, generation: Any, parts: list[str]) -> None:
    checkpoint = small(tmp_path)
    edit_config(checkpoint, eos_token_id=config)
    if generation is not None:
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}), encoding="utf-8")
    text = refusal(checkpoint)
    assert all(part in text for part in parts), text


def test_other_end_ids_are_another_engine_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path / "cache"))
    checkpoint = small(tmp_path)
    for generation, ends in ({}, (26,)), ({"eos_token_id": [28, 29]}, (26, 28, 29)), ({"steps": 5}, (26,)):
        (checkpoint / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
        with LLM(checkpoint, device="cpu") as llm:
            assert llm.spec.model_config.end_token_ids == ends
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_an_engine_with_one_end_id_says_no_more_than_older_ones(tmp_path: Path) -> None:
    stored = json.loads((build(small(tmp_path)) / "config.json").read_text(encoding="utf-8"))["pretrained_config"]
    assert stored["eos_token_id"] == 26 and "end_token_ids" not in stored


# Weights


@pytest.mark.parametrize("family", FAMILIES)
def test_an_index_may_lie_beside_the_only_file(tmp_path: Path, family: str) -> None:
    checkpoint = small(tmp_path, family)
    names = load_file(checkpoint / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (checkpoint / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    assert load_manifest(build(checkpoint)).files
    index["weight_map"].popitem()
    (checkpoint / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    assert f"is not listed there in {INDEX_FILE}" in refusal(checkpoint)


def test_an_index_of_other_files_beside_the_only_file_is_refused(tmp_path: Path) -> None:
    checkpoint = small(tmp_path, shards=2)
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    save_file(tensors, checkpoint / "model.safetensors")
    assert "two sets of weights" in refusal(checkpoint)
    for shard in shards:
        shard.unlink()
    text = refusal(checkpoint)
    assert f"lists {shards[0].name}, which is missing" in text and "remove the index" in text


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_norms_are_cast_and_that_is_said_once(tmp_path: Path, family: str, dtype: str) -> None:
    checkpoint = small(tmp_path, family, dtype=HALF[dtype])
    plain = weights(build(checkpoint))
    edit_tensors(checkpoint, lambda t: t.update({name: one.float() for name, one in t.items() if one.ndim == 1}))
    (said,) = warned(lambda: build(checkpoint))
    assert f"in a {dtype} checkpoint are cast to {dtype}" in said
    again = weights(tmp_path / "engine")
    assert all(torch.equal(again[name], tensor) and again[name].dtype == HALF[dtype] for name, tensor in plain.items())
    assert load_manifest(tmp_path / "engine").build_config.dtype == dtype


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    checkpoint = small(tmp_path, dtype=torch.bfloat16)
    edit_tensors(checkpoint, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].float()}))
    result = CliRunner().invoke(cli, ["build", str(checkpoint), "-o", str(tmp_path / "engine")])
    assert result.exit_code == 0
    (said,) = [line for line in result.stderr.splitlines() if "float32" in line]
    assert said.startswith(f"warning: {checkpoint}: norms or biases in float32 (1, such as model.norm.weight)")


def test_float32_norms_stay_what_they_are_in_a_float32_engine(tmp_path: Path) -> None:
    checkpoint = small(tmp_path, dtype=torch.bfloat16)
    edit_tensors(checkpoint, lambda t: t.update({"model.norm.weight": torch.full((16,), 1.001)}))
    assert warned(lambda: build(checkpoint, dtype="float32")) == []
    assert torch.equal(weights(tmp_path / "engine")["final_norm.weight"], torch.full((16,), 1.001))
    edit_tensors(checkpoint, lambda t: t.update({"model.norm.weight": torch.full((16,), 1e30)}))
    with pytest.raises(D3llmError, match=r"'float16'.*final_norm\.weight"), pytest.warns(match="cast to float16"):
        build(checkpoint, dtype="float16")


def test_float32_matrices_in_half_precision_are_refused(tmp_path: Path) -> None:
    checkpoint = small(tmp_path, dtype=torch.bfloat16)
    edit_tensors(checkpoint, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].float()}))
    assert "tensor lm_head.weight is F32; expected BF16 as the others are" in refusal(checkpoint)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.rotary_emb.original_inv_freq",
        "model.transformer.blocks.1.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.cos_cached",
        "rotary_emb.sin_cached",
        "inv_freq",
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_buffers_of_the_rotary_embedding_are_ignored(tmp_path: Path, name: str, shards: int) -> None:
    checkpoint = small(tmp_path, dtype=torch.bfloat16)
    plain = weights(build(checkpoint))
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name] = torch.full((4,), float("inf"))
    (checkpoint / "model.safetensors").unlink()
    write_tensors(checkpoint, tensors, shards)
    assert warned(lambda: build(checkpoint)) == []
    again = weights(tmp_path / "engine")
    assert again.keys() == plain.keys() and all(torch.equal(again[name], plain[name]) for name in plain)


def lose_layers(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers." in name]:
        del tensors[name]


def add_many(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({f"vision.{index}": torch.zeros(2, 2) for index in range(500)})


def halve_some(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: one.half() for name, one in tensors.items() if "mlp" in name})


def widen(tensors: dict[str, torch.Tensor]) -> None:
    tensors.update({name: torch.zeros(8, 8) for name, one in tensors.items() if one.ndim == 2 and "mlp" in name})


@pytest.mark.parametrize(
    ("change", "count", "kind"),
    [
        (lose_layers, 24, "are missing"),
        (add_many, 500, "are not part of the network"),
        (halve_some, 6, "are of another dtype"),
        (widen, 6, "are of another shape"),
    ],
)
def test_a_list_of_wrong_tensors_is_cut_and_counted(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], count: int, kind: str
) -> None:
    checkpoint = small(tmp_path)
    edit_tensors(checkpoint, change)
    lines = refusal(checkpoint).splitlines()
    assert len(lines) == 5
    assert lines[-1].strip() == f"- and {count - 3} more, {count} in all {kind}"


def test_a_long_list_of_an_index_is_cut_too(tmp_path: Path) -> None:
    checkpoint = small(tmp_path, shards=2)
    index = json.loads((checkpoint / INDEX_FILE).read_text(encoding="utf-8"))
    first, second = sorted(set(index["weight_map"].values()))
    other = {first: second, second: first}
    index["weight_map"] = {name: other[file] for name, file in index["weight_map"].items()}
    (checkpoint / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    text = refusal(checkpoint)
    assert f"in all are not where {INDEX_FILE} expects them" in text
    assert f"in all are not listed in {INDEX_FILE}" in text and len(text.splitlines()) == 9


# Templates and special tokens

FOREIGN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"


def set_template(checkpoint: Path, place: str, text: str) -> None:
    config = checkpoint / "tokenizer_config.json"
    named = {"default": text, "tool_use": text}
    if place == "text":
        edit_json(config, chat_template=text)
    elif place == "list":
        edit_json(config, chat_template=[{"name": name, "template": one} for name, one in named.items()])
    elif place == "object":
        edit_json(config, chat_template=named)
    elif place == "file":
        edit_json(config, chat_template=...)
        (checkpoint / "chat_template.jinja").write_text(text, encoding="utf-8")
    else:
        edit_json(config, chat_template=...)
        folder = checkpoint / "additional_chat_templates"
        folder.mkdir(exist_ok=True)
        (folder / "tool_use.jinja").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("place", ["text", "list", "object", "file", "folder"])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_chat_template_is_told_once_wherever_it_is(tmp_path: Path, family: str, place: str) -> None:
    checkpoint = tiny(tmp_path, family)
    published = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    set_template(checkpoint, place, published)
    assert warned(lambda: build(checkpoint)) == []
    set_template(checkpoint, place, FOREIGN)
    (said,) = warned(lambda: build(checkpoint))
    assert "its chat_template is not the published one" in said


def test_a_template_in_a_file_hides_the_others(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path, "llada")
    published = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    set_template(checkpoint, "file", published)
    set_template(checkpoint, "text", FOREIGN)
    assert warned(lambda: build(checkpoint)) == []
    (checkpoint / "chat_template.jinja").write_bytes(b"\xff\xfe")
    (said,) = warned(lambda: build(checkpoint))
    assert "(chat_template.jinja)" in said


def plain_in_tokenizer(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    tokens = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    edit_json(path, added_tokens=[{**token, "special": False} for token in tokens])


def plain_in_decoder(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer_config.json"
    tokens = json.loads(path.read_text(encoding="utf-8"))["added_tokens_decoder"]
    edit_json(path, added_tokens_decoder={key: {**token, "special": False} for key, token in tokens.items()})


def only_by_role(checkpoint: Path) -> None:
    plain_in_tokenizer(checkpoint)
    plain_in_decoder(checkpoint)
    roles = {"eos_token": {"content": "<|eot_id|>"}, "extra_special_tokens": {"header": "<|start_header_id|>"}}
    edit_json(checkpoint / "tokenizer_config.json", **roles)


@pytest.mark.parametrize("change", [plain_in_tokenizer, plain_in_decoder, only_by_role])
def test_a_token_is_special_if_any_file_says_so(tmp_path: Path, change: Callable[[Path], None]) -> None:
    checkpoint = tiny(tmp_path, "llada")
    change(checkpoint)
    tokenizer = Tokenizer.load(build(checkpoint))
    assert tokenizer is not None
    special = [tokenizer.config.special_tokens[content] for content in ("<|eot_id|>", "<|start_header_id|>")]
    assert tokenizer.decode([special[1], *tokenizer.encode("Hi."), special[0]]) == "Hi."


def test_a_token_that_no_file_calls_special_stays_visible(tmp_path: Path) -> None:
    checkpoint = tiny(tmp_path, "llada")
    plain_in_tokenizer(checkpoint)
    plain_in_decoder(checkpoint)
    tokenizer = Tokenizer.load(build(checkpoint))
    assert tokenizer is not None
    assert (
        tokenizer.decode([*tokenizer.encode("Hi."), tokenizer.config.special_tokens["<|eot_id|>"]]) == "Hi.<|eot_id|>"
    )


# What is no checkpoint, and files that are something else


def test_links_into_a_cache_without_its_blobs_are_named(tmp_path: Path) -> None:
    blobs = Path(shutil.copytree(CHECKPOINTS["dream"], tmp_path / "blobs"))
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    engine = tmp_path / "engine"
    build_engine(snapshot, engine)
    for name in ("config.json", "generation_config.json", "model.safetensors", "vocab.json", "merges.txt"):
        (blobs / name).rename(tmp_path / "away")
        with pytest.raises(CheckpointError) as caught:
            build_engine(snapshot, engine, overwrite=True)
        assert f"{name}: a link to ../../blobs/{name}, which is not there" in str(caught.value)
        assert "the download cache is incomplete" in str(caught.value) and "again" in str(caught.value)
        (tmp_path / "away").rename(blobs / name)
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(CheckpointError, match="link: a link to gone, which is not there"):
        build_engine(tmp_path / "link", engine, overwrite=True)


def test_links_to_missing_shards_are_named(tmp_path: Path) -> None:
    checkpoint = small(tmp_path, shards=2)
    shard = sorted(checkpoint.glob("model-*.safetensors"))[0]
    shard.unlink()
    shard.symlink_to("../../blobs/abc")
    assert f"{shard.name}: a link to ../../blobs/abc, which is not there" in refusal(checkpoint)
    (checkpoint / INDEX_FILE).unlink()
    (checkpoint / INDEX_FILE).symlink_to("../../blobs/def")
    assert f"{INDEX_FILE}: a link to ../../blobs/def, which is not there" in refusal(checkpoint)


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "d3LLM/d3LLM_Dream", "r": 8}


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_called_one(tmp_path: Path, with_config: bool) -> None:
    checkpoint = small(tmp_path)
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    if not with_config:
        (checkpoint / "config.json").unlink()
    (checkpoint / "adapter_config.json").write_text(json.dumps(ADAPTER), encoding="utf-8")
    text = refusal(checkpoint)
    assert "a LORA adapter for d3LLM/d3LLM_Dream (adapter_config.json), not a whole checkpoint" in text
    assert "merge_and_unload()" in text
    with pytest.raises(CheckpointError, match="a LORA adapter for d3LLM/d3LLM_Dream"):
        LLM(checkpoint, device="cpu")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'{"base_model_name_or_path": 7}'])
def test_a_damaged_adapter_is_still_one(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(content)
    assert "adapter" in refusal(folder) and "merge it into its base model" in refusal(folder)


def test_an_adapter_that_cannot_be_merged_is_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}), encoding="utf-8")
    assert "a PREFIX_TUNING adapter (adapter_config.json)" in refusal(folder)
    assert "cannot be merged" in refusal(folder) and "merge_and_unload" not in refusal(folder)


def test_an_adapter_beside_the_weights_is_not_ignored(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    (checkpoint / "adapter_config.json").write_text(json.dumps(ADAPTER), encoding="utf-8")
    text = refusal(checkpoint)
    assert "lies beside the weights" in text and "remove adapter_config.json if it is merged" in text


def test_weights_with_an_adapter_inside_are_not_merged(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    shapes = tensor_shapes("dream", 16, 2, 2, 2, 24, 40)
    lora = {f"base_model.model.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    lora["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(8, 16)
    write_tensors(checkpoint, lora)
    text = refusal(checkpoint)
    assert "belongs to a LoRA adapter" in text and "merge_and_unload()" in text and len(text.splitlines()) == 1


def test_a_folder_of_the_cache_leads_to_its_snapshot(tmp_path: Path) -> None:
    root = tmp_path / "models--org--name"
    shutil.copytree(CHECKPOINTS["dream"], root / "snapshots" / "abc")
    text = refusal(root)
    assert "a folder of the Hub's cache" in text and str(root / "snapshots" / "abc") in text


@pytest.mark.parametrize(
    ("prefix", "parts"),
    [
        (b"\xef\xbb\xbf", ["byte-order mark", "save the file as UTF-8 without one"]),
        (b"\xff\xfe", ["UTF-16", "byte-order mark", "save the file as UTF-8"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["a Git LFS pointer", "git lfs pull"]),
        (b"<!DOCTYPE html>", ["a web page", "again"]),
    ],
    ids=["utf-8", "utf-16", "lfs", "html"],
)
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llada", "config.json"), ("llada", "generation_config.json"), ("llada", "tokenizer.json"),
        ("llada", "tokenizer_config.json"), ("llada", "special_tokens_map.json"), ("dream", "vocab.json"),
        ("dream", "merges.txt"), ("dream", INDEX_FILE),
    ],
)  # fmt: skip
def test_what_stands_in_a_text_file_instead_is_named(
    tmp_path: Path, family: str, name: str, prefix: bytes, parts: list[str]
) -> None:
    checkpoint = tiny(tmp_path, family)
    path = checkpoint / name
    path.write_bytes(prefix + (path.read_bytes() if path.exists() else b"{}"))
    text = refusal(checkpoint)
    assert all(part in text for part in (name, *parts)), text


def test_what_stands_in_a_weights_file_instead_is_named(tmp_path: Path) -> None:
    checkpoint = small(tmp_path)
    path = checkpoint / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    assert "a Git LFS pointer" in refusal(checkpoint) and "git lfs pull" in refusal(checkpoint)
    path.write_bytes(b"<!DOCTYPE html><html>" * 9)
    assert "a web page" in refusal(checkpoint)
