"""The model in a real Triton Inference Server with its engine on a GPU."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.serving.triton.repository import RepositoryOptions, write_repository
from tests.support.tiny_models import CHATS
from tests.support.triton_server import Server, find_server, make_engine, open_server

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_server() is None, reason="needs a Triton Inference Server: make triton"),
]
DEVICE, GPUS = "cuda:0", (0,)
ALGORITHMS = ("FullAttnMultiBlock", "MultiBlock", "LowConfidence")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def server(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("triton")
    write_repository(engine, work / "repository", RepositoryOptions(gpus=GPUS))
    with open_server(work / "repository", work, seconds=120) as opened:
        yield opened


def test_answers_are_the_runtimes(server: Server, engine: Path) -> None:
    with LLM(engine, device=DEVICE) as llm:
        for name in ALGORITHMS:
            for chat in CHATS:
                (wanted,) = llm.generate([chat], SamplingParams(decoding=DecodingConfig(name)))
                answer = server.generate(messages=json.dumps(chat), algorithm=name)
                assert answer["text_output"] == wanted.outputs[0].text
                assert answer["output_ids"] == wanted.outputs[0].token_ids
                assert answer["num_forward_passes"] == wanted.metrics.num_forward_passes


def test_a_stream_adds_up_to_the_answer(server: Server) -> None:
    asked: dict[str, Any] = {
        "messages": json.dumps(CHATS[0]),
        "algorithm": "LowConfidence",
        "block_size": 8,
        "max_tokens": 64,
    }
    events = list(server.stream(**asked))
    assert len(events) > 5 and events[-1]["finish_reason"] == "stop"
    assert "".join(event["text_output"] for event in events) == server.generate(**asked)["text_output"]


def test_a_client_that_leaves_frees_its_slot(server: Server) -> None:
    before = server.metrics()["d3llm_cancelled_requests_total"]
    asked = {"messages": json.dumps(CHATS[0]), "algorithm": "LowConfidence", "max_tokens": 440, "ignore_eos": True}
    for _ in range(8):
        connection = server.open_stream(**asked)
        connection.read(200)
        connection.close()
    end = time.monotonic() + 20
    while time.monotonic() < end and server.metrics()["d3llm_slots_in_use"] + server.metrics()["d3llm_queue_depth"]:
        time.sleep(0.1)
    after = server.metrics()
    assert after["d3llm_slots_in_use"] == 0
    assert after["d3llm_cancelled_requests_total"] > before  # a GPU may be done before some of them leave
    assert server.generate(messages=json.dumps(CHATS[1]))["text_output"].endswith("#### 53")
