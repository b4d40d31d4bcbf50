"""What fits the free memory of a GPU."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from d3llm_trt import LLM, BuildConfig, build_engine
from d3llm_trt.config import EngineConfig
from d3llm_trt.engine_source import engine_for
from d3llm_trt.errors import EngineError
from d3llm_trt.manifest import load_manifest
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.runtime.memory import check_memory, largest_batch
from tests.support.tiny_models import CHECKPOINTS

SEQ = 512


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BuildConfig(max_batch_size=64, max_seq_len=SEQ)
    return build_engine(CHECKPOINTS["llada"], tmp_path_factory.mktemp("memory") / "engine", config)


def test_the_largest_batch_that_fits(engine: Path) -> None:
    manifest = load_manifest(engine)
    config, settings = manifest.model_config, manifest.build_config
    found = [largest_batch(config, settings, 64, size << 20) for size in (100, 600, 700, 900, 1 << 20)]
    assert found == sorted(found) and found[0] == 0 and found[-1] == 64
    assert 0 < found[2] < 64


def test_a_gpu_that_is_too_small_is_refused_with_the_numbers(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, gpu = load_manifest(engine), torch.device("cuda")
    made = manifest.model_config, manifest.build_config
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700 << 20, 1 << 30))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    fits = largest_batch(*made, 64, 700 << 20)
    check_memory(*made, gpu, fits)
    check_memory(*made, torch.device("cpu"))
    with pytest.raises(EngineError, match=f"max_batch_size 64 x max_seq_len 512 takes .* max_batch_size up to {fits} "):
        check_memory(*made, gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 << 20, 1 << 30))
    with pytest.raises(EngineError, match="10 MiB free; use a GPU with more memory"):
        check_memory(*made, gpu)


def test_a_checkpoint_that_will_not_fit_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: ModelConfig, settings: EngineConfig) -> None:
        assert settings.max_batch_size == 4 and settings.max_seq_len > 0 and config.family == "llada"
        raise EngineError("too large")

    monkeypatch.setenv("D3LLM_TRT_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match="too large"):
        engine_for(CHECKPOINTS["llada"], max_batch_size=4, check=refuse)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_gpu_in_use_refuses_before_weights_are_read(engine: Path) -> None:
    gc.collect()
    torch.cuda.empty_cache()  # what earlier tests left counts as free
    free, _ = torch.cuda.mem_get_info()
    taken = [torch.empty(free - (650 << 20), dtype=torch.uint8, device="cuda")]
    try:
        with pytest.raises(EngineError, match=r"max_batch_size 64 .* free; max_batch_size up to"):
            LLM(engine, device="cuda")
    finally:
        taken.clear()
        torch.cuda.empty_cache()  # for whatever test comes next
