"""Arguments of a wrong type: accepted where their meaning is clear, else one of the package's errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d3llm_trt import LLM, BuildConfig, DecodingConfig, SamplingParams, build_engine
from d3llm_trt.config import TensorRTConfig
from d3llm_trt.errors import ConfigError, D3llmError, RequestError
from d3llm_trt.manifest import load_manifest
from tests.support.tiny_models import CHATS, CHECKPOINTS

NO_PATHS = (None, 3, b"name", "", "a\0b", ["a"], object())
CHECKPOINT = CHECKPOINTS["llada"]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    engine = build_engine(CHECKPOINT, tmp_path_factory.mktemp("engine") / "e", {"max_batch_size": np.int64(3)})
    with LLM(engine, device="cpu", max_batch_size=np.int32(2)) as opened:  # type: ignore[arg-type]
        yield opened


@pytest.mark.parametrize("value", NO_PATHS)
def test_what_is_no_path_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model is .*allowed: a path"):
        LLM(value)
    with pytest.raises(ConfigError, match=r"checkpoint_dir is .*allowed: a path"):
        build_engine(value, tmp_path / "e")
    with pytest.raises(ConfigError, match=r"engine_dir is .*allowed: a path"):
        build_engine(CHECKPOINT, value)
    with pytest.raises(ConfigError, match=r"settings file is .*allowed: a path"):
        DecodingConfig.from_file(value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"build_config": "float32"},
        {"build_config": ["float32"]},
        {"build_config": DecodingConfig()},
        {"build_config": {"dtypes": "float32"}},
        {"build_config": {"max_batch_size": "3"}},
        {"build_config": {"tensorrt": 3}},
        {"build_config": {3: 4}},
        {"overwrite": "yes"},
        {"progress": "bar"},
        {"revision": 3},
    ],
)
def test_wrong_options_of_a_build_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"allowed|leave"):
        build_engine(CHECKPOINT, tmp_path / "e", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"backend": 3},
        {"backend": "cuda"},
        {"device": 3},
        {"device": []},
        {"dtype": []},
        {"max_batch_size": "3"},
        {"max_batch_size": True},
        {"max_batch_size": 2.0},
        {"cuda_graphs": True},
        {"progress": 3},
    ],
)
def test_wrong_options_of_an_llm_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"{name} is .*allowed"):
        LLM(CHECKPOINT, **options)


def test_mappings_are_settings(tmp_path: Path, llm: LLM) -> None:
    engine = build_engine(CHECKPOINT, tmp_path / "e", {"max_seq_len": torch.tensor(96), "dtype": "float32"})
    build = load_manifest(engine).build_config
    assert (build.max_seq_len, build.dtype) == (96, "float32")
    params = SamplingParams(max_tokens=np.int64(9), decoding={"algorithm": "LowConfidence"})  # type: ignore[arg-type]
    assert params == SamplingParams(max_tokens=9, decoding=DecodingConfig("LowConfidence"))
    assert llm.spec.max_batch_size == 2
    outputs = llm.generate(CHATS[:2], [{"max_tokens": 4}, None])  # type: ignore[list-item]
    assert len(outputs[0].outputs[0].token_ids) == 4 < len(outputs[1].outputs[0].token_ids)
    *_, last = llm.generate_stream(CHATS[0], {"max_tokens": 5, "decoding": {"block_size": 8}})
    assert len(last.outputs[0].token_ids) == 5


def test_numbers_of_other_libraries_are_numbers() -> None:
    decoding = DecodingConfig(block_size=np.int16(8), threshold=np.float32(0.5), early_stop=np.bool_(False))  # type: ignore[arg-type]
    assert json.dumps(vars(decoding)) == json.dumps(vars(DecodingConfig(block_size=8, threshold=0.5, early_stop=False)))
    params = SamplingParams(stop_token_ids=np.array([3, 4]), temperature=torch.tensor(0.5), seed=np.uint64(7))  # type: ignore[arg-type]
    assert params == SamplingParams(stop_token_ids=[3, 4], temperature=0.5, seed=7)
    config = BuildConfig(backend="tensorrt", tensorrt=TensorRTConfig(token_buckets=(np.int64(64),)))  # type: ignore[arg-type]
    assert json.loads(json.dumps(config.to_dict()))["tensorrt"]["token_buckets"] == [64]


@pytest.mark.parametrize(
    "make",
    [
        lambda: DecodingConfig(algorithm=[]),  # type: ignore[arg-type]
        lambda: DecodingConfig(threshold=np.array([1.0, 2.0])),  # type: ignore[arg-type]
        lambda: DecodingConfig.from_dict(None),  # type: ignore[arg-type]
        lambda: DecodingConfig().with_changes(bogus=1),
        lambda: BuildConfig(backend=[]),  # type: ignore[arg-type]
        lambda: TensorRTConfig(compute_capabilities=([],)),  # type: ignore[arg-type]
        lambda: TensorRTConfig(token_buckets=np.array([[1]])),  # type: ignore[arg-type]
        lambda: SamplingParams(decoding={"bogus": 1}),  # type: ignore[arg-type]
        lambda: SamplingParams(stop=b"text"),  # type: ignore[arg-type]
        lambda: SamplingParams(stop={"a"}),  # type: ignore[arg-type]
        lambda: SamplingParams(n=np.array([1])),  # type: ignore[arg-type]
    ],
)
def test_wrong_values_of_settings_are_refused(make: Any) -> None:
    with pytest.raises(D3llmError):
        make()


@pytest.mark.parametrize("params", [3, "max_tokens", {"bogus": 1}, {"max_tokens": -1}, {"decoding": 3}, [None, 3]])
def test_wrong_sampling_params_are_refused(llm: LLM, params: Any) -> None:
    with pytest.raises(RequestError):
        llm.generate(CHATS[:2], params)
    if not isinstance(params, list):
        with pytest.raises(RequestError):
            llm.generate_stream(CHATS[0], params)
    with pytest.raises(RequestError, match="sink is None"):
        llm.submit(CHATS[0], None, None)  # type: ignore[arg-type]
