"""FP8 on a GPU: products and whole engines against the CPU's reference, and graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from d3llm_trt import LLM, BuildConfig, DecodingConfig, SamplingParams, build_engine
from d3llm_trt.manifest import load_manifest
from d3llm_trt.model.config import FAMILIES
from d3llm_trt.model.torch_ops import fp8_linear
from d3llm_trt.plugins import reference
from d3llm_trt.runtime.engines.base import ForwardBatch
from d3llm_trt.runtime.loading import load_engine
from tests.support.tiny_models import CHATS, CHECKPOINTS, QUESTIONS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with FP8"
    ),
]
LENGTH = 100


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BuildConfig(quantization="fp8", max_batch_size=8, max_seq_len=384)
    return build_engine(CHECKPOINTS[request.param], tmp_path_factory.mktemp("fp8") / "engine", config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 15, 16, 17, 128, 375, 376])
def test_products_take_any_number_of_rows(rows: int, dtype: torch.dtype) -> None:
    for inputs, outputs in ((16, 16), (256, 48), (4096, 4608), (3584, 4096)):
        x_scale, weight_scale = torch.tensor(0.01, device="cuda"), torch.tensor(0.0004, device="cuda")
        x = reference.to_fp8(torch.randn(rows, inputs, device="cuda"), x_scale)
        weight = reference.to_fp8(torch.randn(outputs, inputs, device="cuda") * 0.05, weight_scale)
        for bias in (None, torch.randn(outputs, device="cuda").to(dtype)):
            found = fp8_linear(x, weight, x_scale, weight_scale, bias, dtype)
            wanted = reference.fp8_linear(x, weight, x_scale, weight_scale, bias, torch.float32)
            assert found.dtype == dtype and found.shape == wanted.shape
            # The fast accumulator of the tensor cores keeps fewer bits than float32.
            assert rows == 0 or distance(found.float(), wanted) < 5e-3


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def masked_logits(directory: Path, device: str) -> Tensor:
    """Of every position of a canvas that is masked from its 40th token on."""
    manifest = load_manifest(directory)
    loaded = load_engine(directory, manifest, device=torch.device(device))
    ids = torch.arange(LENGTH) % 50
    ids[40:] = manifest.model_config.mask_token_id
    at = torch.arange(LENGTH)
    batch = [ids, at, torch.tensor([0, LENGTH]), torch.tensor([LENGTH]), torch.tensor([3]), at]
    return loaded.forward(ForwardBatch(*(tensor.to(device) for tensor in batch))).float().cpu()


def test_logits_are_near_those_of_the_reference(engine: Path, tmp_path: Path) -> None:
    """Last bits that differ flip FP8 roundings further on: noise of 0.1 % in every product changes logits by 5 %."""
    manifest = load_manifest(engine)
    source = CHECKPOINTS[manifest.model_config.family]
    plain = masked_logits(build_engine(source, tmp_path / "plain", BuildConfig(max_seq_len=384)), "cpu")
    found, wanted = masked_logits(engine, "cuda"), masked_logits(engine, "cpu")
    assert distance(found, wanted) < min(distance(wanted, plain), 0.1)


def test_graphs_change_no_token(engine: Path) -> None:
    tokens = []
    for cuda_graphs in ("all", "off"):
        with LLM(engine, device="cuda", cuda_graphs=cuda_graphs) as model:
            assert model.spec.graph_capturable and model.spec.quantization == "fp8"
            outputs = model.generate(CHATS, SamplingParams(decoding=DecodingConfig(threshold=1e-3)))
        tokens.append([output.outputs[0].token_ids for output in outputs])
    assert tokens[0] == tokens[1]


def test_questions_are_answered(engine: Path) -> None:
    with LLM(engine, device="cuda") as model:
        outputs = model.generate(CHATS, SamplingParams())
    assert [output.outputs[0].text.split()[-1] for output in outputs] == [str(r) for r in QUESTIONS.values()]
