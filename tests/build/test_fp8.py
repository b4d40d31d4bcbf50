"""FP8 engines on the CPU: what is packed, what runs, what it costs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from d3llm_trt import LLM, BuildConfig, SamplingParams, build_engine
from d3llm_trt.bench import random_engine
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.capacity import estimate
from d3llm_trt.cli.main import cli
from d3llm_trt.errors import BuildError, ConfigError, EngineError
from d3llm_trt.manifest import load_manifest, verify_files
from d3llm_trt.model.config import FAMILIES, ModelConfig
from d3llm_trt.model.packing import packed_tensors, quantized_layers
from d3llm_trt.model.torch_ops import TorchOps, Windows, fp8_linear, rotary_tables
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins import reference
from d3llm_trt.runtime.engines.base import EngineSpec
from d3llm_trt.runtime.engines.torch_engine import check_precision
from d3llm_trt.runtime.loading import load_engine
from examples.tiny_d3llm.check import HELDOUT_SEED
from examples.tiny_d3llm.evaluate import decodings, evaluate
from examples.tiny_d3llm.problems import make_problems
from tests.support.checkpoints import make_checkpoint
from tests.support.tiny_models import CHATS, CHECKPOINTS, QUESTIONS

FP8 = BuildConfig(quantization="fp8", max_batch_size=32, max_seq_len=384)
STAGES = ["pack weights", "calibrate", "compare layers", "quantize weights"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def engine(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_engine(CHECKPOINTS[family], tmp_path_factory.mktemp(family) / "engine", FP8)


def logits_of(
    config: ModelConfig, weights: dict[str, Tensor], kind: type[TorchOps] = TorchOps, rows: Sequence[int] = range(60)
) -> Tensor:
    length = 60
    ids = torch.arange(length) % 50
    ids[20:] = config.mask_token_id
    cache = torch.empty(config.num_layers, 1, 2, config.num_kv_heads, length, config.head_dim, dtype=torch.bfloat16)
    ops = kind(config, weights, cache, Windows.whole(length), rotary_tables(config, length))
    return forward(config, ops, ids, torch.tensor(rows)).float()


# What is packed


def test_an_engine_holds_fp8_weights_and_their_scales(family: str, engine: Path) -> None:
    manifest, opened = load_manifest(engine), open_checkpoint(CHECKPOINTS[family])
    verify_files(engine, manifest)
    weights, layers = load_file(engine / "rank0.safetensors"), quantized_layers(opened.config)
    found = {name: (tuple(weight.shape), str(weight.dtype)) for name, weight in weights.items()}
    forms = packed_tensors(opened.config, "bfloat16", "fp8")
    assert found == {name: (form.shape, f"torch.{form.dtype}") for name, form in forms.items()}
    assert len(layers) == 4 * opened.config.num_layers
    for name, plain in opened.packed_tensors():
        layer = name.removesuffix(".weight")
        if layer not in layers:
            assert torch.equal(weights[name], plain)
            continue
        scale = weights[f"{layer}.weight_scale"]
        assert torch.isclose(scale * 448, plain.float().abs().max())
        assert ((weights[name].float() * scale - plain).norm() / plain.float().norm()) < 0.04
        assert weights[f"{layer}.input_scale"] > 0
    assert sorted(path.name for path in engine.glob("*.safetensors")) == ["rank0.safetensors"]


def test_the_manifest_has_the_error_of_every_layer(family: str, engine: Path) -> None:
    manifest = load_manifest(engine)
    assert set(manifest.quantization_errors) == set(quantized_layers(manifest.model_config))
    assert all(0.001 < error < 0.06 for error in manifest.quantization_errors.values())
    shown = json.loads(CliRunner().invoke(cli, ["inspect", str(engine), "--json"]).stdout)
    assert shown["quantization"] == "fp8"
    worst = manifest.quantization_errors[shown["layer_of_largest_error"]]
    assert worst == max(manifest.quantization_errors.values())
    assert shown["largest_quantization_error"] == round(worst, 5)


def test_builds_are_reproducible(family: str, engine: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    again = build_engine(CHECKPOINTS[family], tmp_path / "again", FP8, progress=lambda *call: calls.append(call))
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in engine.iterdir()}
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == STAGES
    for stage in STAGES:
        done, total = [call[1:] for call in calls if call[0] == stage][-1]
        assert done == total


def test_the_estimate_is_what_is_written(family: str, engine: Path) -> None:
    manifest = load_manifest(engine)
    size = manifest.files["rank0.safetensors"].size
    estimated = estimate(manifest.model_config, manifest.build_config).weights
    assert estimated < size < estimated + 100 * len(packed_tensors(manifest.model_config, "bfloat16", "fp8")) + 100


# What runs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_is_that_of_the_numbers_times_the_scales(dtype: torch.dtype) -> None:
    x = reference.to_fp8(torch.randn(5, 48) * 3, torch.tensor(0.01))
    weight, bias = reference.to_fp8(torch.randn(32, 48), torch.tensor(0.02)), torch.randn(32).to(dtype)
    found = fp8_linear(x, weight, torch.tensor(0.01), torch.tensor(0.02), bias, dtype)
    wanted = (x.double() * 0.01) @ (weight.double() * 0.02).T + bias.double()
    assert found.dtype == dtype
    assert torch.allclose(found.double(), wanted, rtol=2**-8, atol=1e-3)
    assert fp8_linear(x[:0], weight, torch.tensor(0.01), torch.tensor(0.02), None, dtype).shape == (0, 32)


class _Unfused(TorchOps):
    """What comes before a linear layer gives half precision, and the layer quantizes it."""

    def input_scale(self, linear: str) -> None:
        return None

    def linear(self, name: str, x: Tensor) -> Tensor:
        scale = self._weights.get(f"{name}.input_scale")
        return super().linear(name, x if scale is None else reference.to_fp8(x, scale))


class _Recording(TorchOps):
    """Which linear layers got FP8 from what came before them."""

    given: set[str] = set()  # noqa: RUF012

    def linear(self, name: str, x: Tensor) -> Tensor:
        if x.dtype == torch.float8_e4m3fn:
            self.given.add(name.split(".", 2)[-1])
        return super().linear(name, x)


def test_quantization_before_linear_layers_changes_nothing(family: str, engine: Path) -> None:
    config, weights = load_manifest(engine).model_config, load_file(engine / "rank0.safetensors")
    fused = logits_of(config, weights, _Recording)
    assert _Recording.given == {"attention.qkv", "attention.output", "mlp.gate_up", "mlp.down"}
    assert torch.equal(fused, logits_of(config, weights, _Unfused))
    plain = logits_of(config, dict(open_checkpoint(CHECKPOINTS[family]).packed_tensors()))
    assert 0.001 < (fused - plain).norm() / plain.norm() < 0.1
    rows = [40, 7, 59]
    assert torch.allclose(logits_of(config, weights, rows=rows), fused[rows], rtol=0.02, atol=0.05)
    saturated = {**weights, "layers.1.mlp.down.input_scale": weights["layers.1.mlp.down.input_scale"] / 100}
    assert (logits_of(config, saturated) - plain).norm() / plain.norm() > 0.1


def test_questions_are_answered(engine: Path) -> None:
    with LLM(engine, device="cpu") as model:
        assert model.spec.quantization == "fp8"
        outputs = model.generate(CHATS, SamplingParams())
    assert [output.outputs[0].text.split()[-1] for output in outputs] == [str(r) for r in QUESTIONS.values()]


def test_heldout_problems_are_solved_as_in_bfloat16(family: str, engine: Path, tmp_path: Path) -> None:
    plain = build_engine(CHECKPOINTS[family], tmp_path / "plain", replace(FP8, quantization=None))
    problems, decoding = make_problems(120, HELDOUT_SEED, "heldout"), decodings([0.5])["FullAttnMultiBlock 0.5"]
    found = []
    for directory in (plain, engine):
        with LLM(directory, device="cpu") as model:
            found.append(evaluate(model, problems, decoding, 96))
    exact, small = found
    assert exact["exact"] > 0.95
    assert small["exact"] >= exact["exact"] - 0.015
    assert small["tokens_per_forward"] == pytest.approx(exact["tokens_per_forward"], rel=0.03)


# What is refused


def test_float32_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'float32'; allowed: bfloat16, float16 with fp8"):
        build_engine(CHECKPOINTS["llada"], tmp_path / "engine", replace(FP8, dtype="float32"))
    assert not any(tmp_path.iterdir())


def test_sizes_that_are_no_multiples_of_16_are_named(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "checkpoint", "dream", hidden=32, layers=1, vocab=40, intermediate=24)
    message = r"layers\.0\.mlp\.down is 32 x 24; allowed: multiples of 16 with quantization 'fp8'"
    with pytest.raises(BuildError, match=message):
        build_engine(source, tmp_path / "engine", BuildConfig(quantization="fp8", dtype="bfloat16"))
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0)])
def test_a_gpu_without_fp8_is_refused(engine: Path, capability: tuple[int, int]) -> None:
    config = load_manifest(engine).model_config
    spec = EngineSpec(config, "torch", torch.bfloat16, torch.device("cuda:0"), 1, 64, 64, "fp8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        if capability >= (8, 9):
            check_precision(spec)
            return
        message = r"'fp8', which cuda:0 of compute capability 8\.[06].*needs 8\.9 or newer"
        with pytest.raises(EngineError, match=message):
            check_precision(spec)
        check_precision(replace(spec, quantization=None))


def test_a_file_of_another_precision_is_refused(family: str, engine: Path) -> None:
    manifest = load_manifest(engine)
    plain = replace(manifest, build_config=replace(manifest.build_config, quantization=None))
    with pytest.raises(EngineError, match="is not what its manifest says"):
        load_engine(engine, plain, device=torch.device("cpu"))


# Benchmarks


def test_random_weights_are_measured_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = open_checkpoint(CHECKPOINTS["dream"]).config
    monkeypatch.setitem(random_engine.SHAPES, "dream-7b", tiny)
    _, weights = random_engine.random_weights(
        "dream-7b", device=torch.device("cpu"), dtype=torch.bfloat16, quantization="fp8"
    )
    found = {name: (tuple(weight.shape), str(weight.dtype)) for name, weight in weights.items()}
    forms = packed_tensors(tiny, "bfloat16", "fp8")
    assert found == {name: (form.shape, f"torch.{form.dtype}") for name, form in forms.items()}
    asked = ["--shape", "dream-7b", "--quantization", "fp8", "--device", "cpu", "--input-len", "9"]
    result = CliRunner().invoke(cli, ["bench", *asked, "--output-len", "20", "--runs", "1", "--json"])
    report = json.loads(result.stdout)
    assert report["model"] == "dream-7b, random weights in fp8"
    assert report["measurements"][0]["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["x", "--quantization", "fp8"], "--quantization is 'fp8', which goes with --shape"),
        (["--shape", "llada-8b", "--quantization", "fp8", "--dtype", "float32", "--device", "cpu"], "float32"),
    ],
)
def test_bench_refuses(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 2
    assert complaint in result.stderr
