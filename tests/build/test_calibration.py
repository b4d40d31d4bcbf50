"""FP8 calibration: which canvases are unmasked and how, what it sees of real prompts, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from d3llm_trt import LLM, BuildConfig, DecodingConfig, SamplingParams, build_engine
from d3llm_trt.build import calibration
from d3llm_trt.build.cached import cache_key
from d3llm_trt.build.calibration import ANSWER, PASSES, calibrate, encoded_prompts, generated_canvases
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.build.quantize import fp8_weights
from d3llm_trt.cli.main import cli
from d3llm_trt.errors import BuildError, ConfigError
from d3llm_trt.manifest import FileFacts, file_facts, load_manifest
from d3llm_trt.model.config import FAMILIES, ModelConfig
from d3llm_trt.model.packing import quantized_layers
from d3llm_trt.model.torch_ops import TorchOps
from d3llm_trt.tokenizer import Tokenizer
from examples.tiny_d3llm.problems import make_problems
from tests.support.checkpoints import make_checkpoint
from tests.support.tiny_models import CHATS, CHECKPOINTS, QUESTIONS

FP8 = BuildConfig(quantization="fp8", max_batch_size=8, max_seq_len=384)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_engine(CHECKPOINTS[family], tmp_path_factory.mktemp(family) / "plain", replace(FP8, quantization=None))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "questions.txt"
    problems = make_problems(16, 5, "train")
    file.write_text("".join(f"{problem.question}\n" for problem in problems), encoding="utf-8")
    return file


def opened(family: str) -> tuple[ModelConfig, dict[str, Tensor]]:
    checkpoint = open_checkpoint(CHECKPOINTS[family])
    return checkpoint.config, dict(checkpoint.packed_tensors())


def write(path: Path, *prompts: object) -> Path:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
    return path


# Canvases


def test_generated_canvases_are_tokens_and_then_masks(family: str) -> None:
    config, _ = opened(family)
    canvases = generated_canvases(config)
    assert len({len(canvas) for canvas in canvases}) == len(canvases) > 1
    for canvas in canvases:
        masked = canvas == config.mask_token_id
        assert masked[-ANSWER:].all() and not masked[:-ANSWER].any()
        assert ((canvas >= 0) & (canvas < config.vocab_size)).all()
    assert all(map(torch.equal, canvases, generated_canvases(config)))


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_generated_canvases_fit_the_model(limit: int) -> None:
    config, weights = opened("dream")
    config = replace(config, max_position_embeddings=limit)
    canvases = generated_canvases(config)
    assert all(len(canvas) <= limit and canvas[-1] == config.mask_token_id for canvas in canvases)
    assert set(quantized_layers(config)) <= calibrate(config, weights, canvases).peaks.keys()


def passes_over(
    monkeypatch: pytest.MonkeyPatch, config: ModelConfig, weights: dict[str, Tensor], canvas: Tensor
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Canvas, logit rows and logits of every pass of a calibration."""
    seen = []

    def recorded(config: ModelConfig, ops: TorchOps, ids: Tensor, rows: Tensor) -> Tensor:
        logits = calibration_forward(config, ops, ids, rows)
        seen.append((ids.clone(), rows, logits))
        return logits

    calibration_forward = calibration.forward
    monkeypatch.setattr(calibration, "forward", recorded)
    calibrate(config, weights, [canvas])
    return seen


@pytest.mark.parametrize("answer", [ANSWER, 7, 1])
def test_passes_commit_the_most_certain_masks(family: str, answer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = opened(family)
    mask = config.mask_token_id
    canvas = torch.cat((torch.arange(5, 30), torch.full((answer,), mask)))
    seen = passes_over(monkeypatch, config, weights, canvas)
    assert len(seen) == PASSES and torch.equal(seen[0][0], canvas)
    left = answer
    for number, ((before, rows, logits), (after, _, _)) in enumerate(pairwise(seen)):
        masked, changed = (before == mask).nonzero()[:, 0], (before != after).nonzero()[:, 0]
        assert len(masked) == left and set(changed.tolist()) <= set(masked.tolist())
        left -= left // (PASSES - number)
        assert (after == mask).sum() == left
        asked = masked[: len(rows)]
        assert torch.equal(rows, asked - int(family == "dream"))
        p = logits.float().softmax(-1)
        entropy = -(p * (p + 1e-12).log()).sum(-1)
        chosen = torch.isin(asked, changed)
        if chosen.any() and not chosen.all():
            assert entropy[chosen].max() <= entropy[~chosen].min()
        allowed = logits.index_fill(1, torch.tensor([mask]), -torch.inf)
        assert torch.equal(after[asked[chosen]], allowed[chosen].argmax(-1))


def test_progress_tells_every_pass(family: str) -> None:
    config, weights = opened(family)
    calls: list[tuple[str, int, int]] = []
    canvases = generated_canvases(config)
    calibrate(config, weights, canvases, lambda *call: calls.append(call))
    total = PASSES * len(canvases)
    assert calls == [("calibrate", done, total) for done in range(1, total + 1)]


# Prompts


def test_prompts_are_encoded_as_generate_does(family: str, plain: Path, tmp_path: Path) -> None:
    tokenizer, config = Tokenizer.load(plain), load_manifest(plain).model_config
    assert tokenizer is not None
    question = next(iter(QUESTIONS))
    file = write(tmp_path / "p.jsonl", {"prompt": question}, {"messages": CHATS[1]}, {"prompt_token_ids": [3, 1, 2]})
    found = list(encoded_prompts(file, tokenizer, config.vocab_size, 384))
    assert found == [tokenizer.chat_ids(CHATS[0]), tokenizer.chat_ids(CHATS[1]), [3, 1, 2]]


def peaks_while_decoding(engine: Path, prompts: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    peaks: dict[str, float] = {}
    linear = TorchOps.linear

    def observed(self: TorchOps, name: str, x: Tensor) -> Tensor:
        peaks[name] = max(peaks.get(name, 0.0), float(x.abs().max()) if len(x) else 0.0)
        return linear(self, name, x)

    with monkeypatch.context() as patch:
        patch.setattr(TorchOps, "linear", observed)
        with LLM(engine, device="cpu") as model:
            chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
            params = SamplingParams(max_tokens=96, decoding=DecodingConfig("FullAttnMultiBlock", threshold=0.5))
            assert not any(output.error for output in model.generate(chats, params))
    return peaks


def test_peaks_of_prompts_cover_what_decoding_them_shows(
    family: str, plain: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build_engine(CHECKPOINTS[family], tmp_path / "e", replace(FP8, calibration_prompts=str(questions)))
    weights = load_file(engine / "rank0.safetensors")
    peaks = peaks_while_decoding(plain, questions.read_text(encoding="utf-8").splitlines(), monkeypatch)
    layers = quantized_layers(load_manifest(engine).model_config)
    shares = [peaks[name] / (448 * float(weights[f"{name}.input_scale"])) for name in layers]
    assert max(shares) < 1.25
    assert 0.9 < sum(shares) / len(shares) < 1.03


def test_prompts_set_the_scales_and_are_named(
    family: str, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions.txt").write_bytes(questions.read_bytes())
    write(Path("short.jsonl"), {"prompt_token_ids": [3, 1, 2]})
    scales = {}
    for prompts in (None, "questions.txt", "short.jsonl"):
        engine = build_engine(CHECKPOINTS[family], f"{prompts}-e", replace(FP8, calibration_prompts=prompts))
        tensors = load_file(engine / "rank0.safetensors")
        scales[prompts] = torch.stack([t for name, t in sorted(tensors.items()) if name.endswith(".input_scale")])
        manifest = load_manifest(engine)
        assert manifest.build_config.calibration_prompts == prompts
        assert manifest.calibration_prompts == (None if prompts is None else file_facts(Path(prompts)))
        shown = json.loads(CliRunner().invoke(cli, ["inspect", str(engine), "--json"]).stdout)
        assert shown["calibrated_on"] == (prompts or "generated prompts")
    named = list(scales.values())
    assert not any(torch.equal(a, b) for a, b in ((named[0], named[1]), (named[1], named[2]), (named[0], named[2])))


def test_the_command_line_takes_a_file(family: str, questions: Path, tmp_path: Path) -> None:
    options = ["--quantization", "fp8", "--max-batch-size", "8", "--max-seq-len", "384"]
    target, file = tmp_path / "cli", ["--calibration-prompts", str(questions)]
    result = CliRunner().invoke(cli, ["build", str(CHECKPOINTS[family]), "-o", str(target), *options, *file])
    assert result.exit_code == 0, result.output
    same = build_engine(CHECKPOINTS[family], tmp_path / "e", replace(FP8, calibration_prompts=str(questions)))
    assert {f.name: f.read_bytes() for f in target.iterdir()} == {f.name: f.read_bytes() for f in same.iterdir()}


def test_plans_take_the_same_scales(family: str, tmp_path: Path) -> None:
    config, weights = opened(family)
    file = write(tmp_path / "p.jsonl", {"prompt_token_ids": [3, 1, 2]})
    settings = replace(FP8, calibration_prompts=file)
    engine = build_engine(CHECKPOINTS[family], tmp_path / "e", settings)
    packed = load_file(engine / "rank0.safetensors")
    canvases = calibration.canvases_for(config, settings.resolved(384, "bfloat16"), engine)
    planned = fp8_weights(config, weights, canvases)
    scales = {name: planned[f"{name}.input_scale"] for name in quantized_layers(config)}
    assert all(torch.equal(scale, packed[f"{name}.input_scale"]) for name, scale in scales.items())
    assert len(scales) == 4 * config.num_layers


def test_plans_get_the_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    given: list[Tensor] = []

    def build_plan(*args: Any) -> FileFacts:
        given.extend(args[-1])
        args[3].write_bytes(b"plan")
        return file_facts(args[3])

    monkeypatch.setattr("d3llm_trt.build.tensorrt.plan.build_plan", build_plan)
    file = write(tmp_path / "p.jsonl", {"prompt_token_ids": [3, 1, 2]})
    settings = replace(FP8, backend="tensorrt-rtx", calibration_prompts=file)
    engine = build_engine(CHECKPOINTS["dream"], tmp_path / "e", settings)
    mask = load_manifest(engine).model_config.mask_token_id
    assert [canvas.tolist() for canvas in given] == [[3, 1, 2, *[mask] * ANSWER]]
    assert load_manifest(engine).calibration_prompts == file_facts(file)


def test_the_cache_key_follows_the_content(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(CHECKPOINTS["llada"])

    def key(path: Path | None) -> str:
        return cache_key(checkpoint, replace(FP8, calibration_prompts=path).resolved(384, "bfloat16"))

    one, same = (write(tmp_path / name, {"prompt_token_ids": [1]}) for name in ("a.jsonl", "b.jsonl"))
    other = write(tmp_path / "c.jsonl", {"prompt_token_ids": [2]})
    assert key(one) == key(same)
    assert len({key(None), key(one), key(other)}) == 3
    lines = tmp_path / "a.txt"
    lines.write_bytes(one.read_bytes())  # another way to read the same bytes
    assert key(lines) != key(one)


# What is refused


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"calibration_prompts": "p.txt"}, r"'p\.txt', which goes with quantization 'fp8'; set quantization"),
        ({"calibration_prompts": 7, "quantization": "fp8"}, "7; allowed: None or a file's name"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=f"calibration_prompts is {complaint}"):
        BuildConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, r"calibration_prompts is '.*p\.jsonl'; allowed: a regular file; correct"),
        ("\n \n", "holds no prompt; write one prompt per line"),
        ('{"prompt": 3}', r"p\.jsonl:1: prompt is 3; allowed: a text"),
        (
            '{"prompt": "a"}\n{"prompt_token_ids": [1, 100000]}',
            r"prompt 2: prompt_token_ids\[1\] is 100000; allowed: integers in 0\.\.",
        ),
        ('{"prompt_token_ids": [1, -1]}', r"prompt 1: prompt_token_ids\[1\] is -1; allowed: integers in 0\.\."),
        (
            json.dumps({"prompt_token_ids": [1] * 384}),
            "384 tokens; allowed: at least 1 and fewer than max_seq_len, 384",
        ),
        ('{"messages": [{"role": "cook", "content": "a"}]}', r"prompt 1: messages\[0\] has role 'cook'; allowed"),
    ],
)
def test_files_that_cannot_be_taken(content: str | None, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    calls: list[str] = []
    settings = replace(FP8, calibration_prompts=file)
    with pytest.raises(ConfigError, match=complaint):
        build_engine(CHECKPOINTS["llada"], tmp_path / "e", settings, progress=lambda stage, *_: calls.append(stage))
    assert not calls and not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("tensor", "layer"), [("blocks.0.up_proj", r"layers\.0\.mlp\.down"), ("blocks.1.ff_out", "lm_head")]
)
def test_an_input_that_overflows_is_named_and_an_engine_stays_as_it_was(
    tensor: str, layer: str, tmp_path: Path
) -> None:
    source = make_checkpoint(tmp_path / "c", "llada", dtype=torch.bfloat16)
    file = source / "model.safetensors"
    weights = load_file(file)
    name = f"model.transformer.{tensor}.weight"
    save_file({**weights, name: weights[name] * 60000}, file)
    plain = BuildConfig(dtype="float16", max_seq_len=64)
    before = build_engine(source, tmp_path / "e", replace(plain, dtype="bfloat16")) / "config.json"
    content = before.read_bytes()
    with pytest.raises(BuildError, match=rf"the input of {layer} is (inf|nan) .*; build with dtype bfloat16"):
        build_engine(source, tmp_path / "e", replace(plain, quantization="fp8"), overwrite=True)
    assert before.read_bytes() == content


def test_prompts_that_change_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt_token_ids": [1, 2]})

    def changing(*_: object) -> list[Tensor]:
        file.write_text("{}")
        return []

    monkeypatch.setattr(calibration, "canvases_for", changing)
    with pytest.raises(BuildError, match="changed while it was read; build again"):
        build_engine(CHECKPOINTS["llada"], tmp_path / "e", replace(FP8, calibration_prompts=file))
    assert not (tmp_path / "e").exists()


def test_a_name_that_no_file_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allowed: a regular file"):
        build_engine(CHECKPOINTS["llada"], tmp_path / "e", replace(FP8, calibration_prompts="x" * 5000))


def test_text_without_a_tokenizer(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", {"prompt_token_ids": [1]}, {"prompt": "a"})
    prompts = encoded_prompts(file, None, 10, 10)
    assert next(prompts) == [1]
    with pytest.raises(ConfigError, match="prompt 2: this engine has no tokenizer; give"):
        next(prompts)


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    arguments = ["build", str(CHECKPOINTS["dream"]), "-o", str(tmp_path / "e"), "--calibration-prompts", "lost.txt"]
    for more, complaint in (([], "goes with quantization 'fp8'"), (["--quantization", "fp8"], "'lost.txt'; allowed")):
        result = CliRunner().invoke(cli, [*arguments, *more])
        assert result.exit_code == 2
        assert complaint in result.stderr and result.stderr.count("\n") == 1
