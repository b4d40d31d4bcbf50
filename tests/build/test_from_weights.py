"""Engines made of weights in memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.from_weights import write_engine
from d3llm_trt import LLM, BuildConfig, SamplingParams, build_engine
from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.errors import BuildError, ConfigError
from tests.support.tiny_models import CHECKPOINTS

ASKED = [{"prompt_token_ids": [1, 2, 3]}]
PARAMS = SamplingParams(max_tokens=8, ignore_eos=True)


def test_the_same_weights_give_the_same_answer(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(CHECKPOINTS["llada"])
    weights = dict(checkpoint.packed_tensors())
    written = write_engine(tmp_path / "written", checkpoint.config, weights, BuildConfig(max_seq_len=32))
    built = build_engine(CHECKPOINTS["llada"], tmp_path / "built", BuildConfig(max_seq_len=32))
    with LLM(written, device="cpu") as llm, LLM(built, device="cpu") as other:
        (mine,), (wanted,) = llm.generate(ASKED, PARAMS), other.generate(ASKED, PARAMS)
        assert llm.tokenizer is None and mine.error is None
    assert mine.outputs[0].token_ids == wanted.outputs[0].token_ids


def test_what_is_no_engine_is_not_written(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(CHECKPOINTS["llada"])
    weights = dict(checkpoint.packed_tensors())
    with pytest.raises(ConfigError, match="backend is 'tensorrt'"):
        write_engine(tmp_path / "e", checkpoint.config, weights, BuildConfig("tensorrt"))
    with pytest.raises(ConfigError, match="calibration_prompts is 'p'"):
        asked = BuildConfig(quantization="fp8", calibration_prompts="p")
        write_engine(tmp_path / "e", checkpoint.config, weights, asked)
    norm = weights["final_norm.weight"]
    for changed, complaint in (
        (None, "is missing"),
        (norm[:-1], r"is bfloat16 \[\d+\]; allowed: bfloat16"),
        (norm.double(), "is float64"),
        (norm * float("nan"), "not finite"),
    ):
        others = {name: weight for name, weight in weights.items() if name != "final_norm.weight"}
        with pytest.raises(BuildError, match=rf"tensor final_norm\.weight .*{complaint}"):
            write_engine(
                tmp_path / "e",
                checkpoint.config,
                others if changed is None else {**others, "final_norm.weight": changed},
            )
    small, quantized = "layers.0.mlp.down", BuildConfig(quantization="fp8")
    packed = dict(load_file(build_engine(CHECKPOINTS["llada"], tmp_path / "fp8", quantized) / "rank0.safetensors"))
    shutil.rmtree(tmp_path / "fp8")
    nan = torch.full_like(packed[f"{small}.weight"].view(torch.uint8), 0xFF).view(torch.float8_e4m3fn)
    for changes, complaint in (
        ({f"{small}.weight": nan}, "not finite"),
        ({f"{small}.weight_scale": torch.tensor(0.0)}, "is 0; allowed: above 0"),
        ({f"{small}.input_scale": torch.tensor(-1.0)}, "is -1; allowed: above 0"),
    ):
        with pytest.raises(BuildError, match=complaint):
            write_engine(tmp_path / "e", checkpoint.config, {**packed, **changes}, quantized)
    with pytest.raises(BuildError, match=r"tensor embedding\.weight is missing"):
        write_engine(tmp_path / "e", checkpoint.config, {})
    assert not list(tmp_path.iterdir())
