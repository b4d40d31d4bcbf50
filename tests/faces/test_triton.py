"""The model in a real Triton Inference Server on loopback (``make triton``), on the CPU with a tiny checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from d3llm_trt import LLM, DecodingConfig, SamplingParams
from d3llm_trt.errors import ConfigError, EngineError
from d3llm_trt.serving.triton.repository import RepositoryOptions, write_repository
from d3llm_trt.serving.triton.validation import validate_repository
from d3llm_trt.serving.triton.watchdog import Watchdog
from tests.support.tiny_models import CHATS, QUESTIONS, ROOT
from tests.support.triton_server import (
    Server,
    find_server,
    have_ended,
    make_engine,
    open_server,
    tritonserver_on_the_path,
    wait_for,
)

needs_server = pytest.mark.skipif(find_server() is None, reason="needs a Triton Inference Server: make triton")
SLOW = {"algorithm": "LowConfidence", "ignore_eos": True}
DIED = "the backend's process died"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_engine(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def server(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two instances, so that what one holds the other must not need."""
    work = tmp_path_factory.mktemp("triton")
    write_repository(engine, work / "repository", RepositoryOptions(instances=2, max_queue_size=64))
    with open_server(work / "repository", work) as opened:
        yield opened


def messages(chat: list[dict[str, str]]) -> str:
    return json.dumps(chat)


# The repository


def test_a_repository_is_complete_and_can_be_moved(engine: Path, tmp_path: Path) -> None:
    model = write_repository(engine, tmp_path / "r", RepositoryOptions("mine", 3, (0, 2)))
    assert {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()} == {
        "config.pbtxt", "1/model.py", "1/engine/config.json", "1/engine/rank0.safetensors",
        "1/engine/tokenizer.json", "1/engine/tokenizer_config.json",
    }  # fmt: skip
    text = (model / "config.pbtxt").read_text()
    assert 'name: "mine"' in text and "count: 3 kind: KIND_GPU gpus: [0, 2]" in text and str(tmp_path) not in text
    moved = (tmp_path / "r").rename(tmp_path / "elsewhere")
    with LLM(moved / "mine" / "1" / "engine", device="cpu") as llm:
        assert llm.generate([CHATS[0]])[0].outputs[0].text.endswith("#### 57")


def test_bad_repositories_leave_nothing(engine: Path, tmp_path: Path) -> None:
    write_repository(engine, tmp_path)
    with pytest.raises(ConfigError, match="there is a model already"):
        write_repository(engine, tmp_path)
    with pytest.raises(EngineError, match="no such directory"):
        write_repository(tmp_path / "none", tmp_path, RepositoryOptions("other"))
    write_repository(engine, tmp_path / "gpu", RepositoryOptions(gpus=(0,)))
    for options, complaint in (
        ({"name": "../x"}, "name is '../x'"),
        ({"instances": 0}, "instances is 0"),
        ({"gpus": (0, 0)}, "gpus is"),
        ({"max_queue_size": -1}, "max_queue_size is -1"),
        ({"exit_on_crash": "no"}, "exit_on_crash is 'no'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            RepositoryOptions(**options)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d3llm", "gpu"]


@needs_server
def test_a_broken_engine_makes_the_model_unhealthy(engine: Path, tmp_path: Path) -> None:
    """Not a hang, and not a model that says it is ready and fails every request."""
    model = write_repository(engine, tmp_path / "repository")
    (model / "1" / "model.py").write_text(
        "from d3llm_trt.runtime.engines.torch_engine import TorchEngine\n"
        "from d3llm_trt.serving.triton.model import TritonPythonModel\n"
        "forward = TorchEngine.forward\n"
        "def broken(self, batch):\n"
        "    if len(batch.token_ids) > 20: raise RuntimeError('an illegal memory access')\n"
        "    return forward(self, batch)\n"
        "TorchEngine.forward = broken\n"
    )
    with open_server(tmp_path / "repository", tmp_path) as server:
        assert "output_ids" in server.generate(input_ids=[1], max_tokens=2)
        for _ in range(3):
            assert "an illegal memory access" in server.generate(text_input="x", max_tokens=60)["error"]
        time.sleep(1)
        assert "not healthy" in server.generate(input_ids=[1], max_tokens=2)["error"]
        assert DIED not in server.log.read_text(errors="replace")


# Serving


@needs_server
def test_grpc_streams(server: Server) -> None:
    """Two streams on one connection: each request's responses come in order, and end."""
    grpc = pytest.importorskip("tritonclient.grpc")
    events: dict[str, list[Any]] = {"0": [], "1": []}
    ended = threading.Event()

    def receive(result: Any, error: Any) -> None:
        assert error is None, error
        response = result.get_response()
        if response.outputs:
            events[response.id].append(result.as_numpy("text_output")[0].decode())
        if response.parameters["triton_final_response"].bool_param:
            events[response.id].append(None)
        if all(texts and texts[-1] is None for texts in events.values()):
            ended.set()

    def inputs(chat: list[dict[str, str]]) -> list[Any]:
        values = {
            "messages": np.array([messages(chat)], dtype=np.object_),
            "algorithm": np.array(["LowConfidence"], dtype=np.object_),
            "stream": np.array([True]),
        }
        kinds = {"stream": "BOOL"}
        tensors = [grpc.InferInput(name, [1], kinds.get(name, "BYTES")) for name in values]
        for tensor, value in zip(tensors, values.values(), strict=True):
            tensor.set_data_from_numpy(value)
        return tensors

    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.start_stream(receive)
        for number in ("0", "1"):
            client.async_stream_infer(
                "d3llm", inputs(CHATS[int(number)]), request_id=number, enable_empty_final_response=True
            )
        assert ended.wait(60)
        client.stop_stream()
    for number, texts in events.items():
        assert len(texts) > 5
        assert "".join(texts[:-1]) == server.generate(messages=messages(CHATS[int(number)]))["text_output"]


@needs_server
def test_answers_are_the_runtimes(server: Server, engine: Path) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"algorithm": "MultiBlock", "threshold": 0.001, "cache_delay_iter": 1, "block_size": 16},
        {"temperature": 4.0, "seed": 5, "max_tokens": 40},
        {"stop_words": ["####", "never"]},
        {"max_tokens": 7},
    ]
    with LLM(engine, device="cpu") as llm:
        for number, given in enumerate(settings):
            chat = CHATS[number % 3]
            decoding = {
                key: given[key] for key in ("algorithm", "threshold", "cache_delay_iter", "block_size") if key in given
            }
            rest = {key: value for key, value in given.items() if key not in decoding and key != "stop_words"}
            params = SamplingParams(**rest, stop=given.get("stop_words"), decoding=DecodingConfig.from_dict(decoding))
            (wanted,) = llm.generate([chat], params)
            answer = server.generate(messages=messages(chat), **given)
            assert answer["text_output"] == wanted.outputs[0].text
            assert answer["output_ids"] == wanted.outputs[0].token_ids
            assert answer["finish_reason"] == wanted.outputs[0].finish_reason
            assert answer["num_forward_passes"] == wanted.metrics.num_forward_passes
            assert answer["tokens_per_forward"] == wanted.metrics.tokens_per_forward


@needs_server
def test_the_three_kinds_of_prompt(server: Server) -> None:
    plain = server.generate(text_input="plain <|mdm_mask|> text", max_tokens=4)
    whole = server.generate(text_input="plain <|mdm_mask|> text", max_tokens=4, exclude_input_in_output=False)
    assert whole["text_output"] == "plain <|mdm_mask|> text" + plain["text_output"]
    assert 562 not in whole["output_ids"] and whole["output_ids"][-4:] == plain["output_ids"][-4:]
    assert len(server.generate(input_ids=[1, 2, 562, 3], max_tokens=4, ignore_eos=True)["output_ids"]) == 4
    shown = {"input_ids": [1, 2, 562, 3], "max_tokens": 4, "ignore_eos": True, "exclude_input_in_output": False}
    filled = server.generate(**shown)["output_ids"]
    assert len(filled) == 8 and 562 not in filled
    (refused,) = server.stream(**shown)
    assert "input_ids has masks" in refused["error"]
    chat = server.generate(messages=messages(CHATS[0]), max_tokens=4, exclude_input_in_output=False)
    assert "Mia has 6 boxes" in chat["text_output"]


@needs_server
def test_streams_send_what_is_new_and_end(server: Server) -> None:
    asked = {"messages": messages(CHATS[0]), "algorithm": "LowConfidence", "block_size": 8, "max_tokens": 64}
    whole = server.generate(**asked)
    events = list(server.stream(**asked))
    assert len(events) > 5
    assert "".join(event["text_output"] for event in events) == whole["text_output"]
    ids = [token for event in events for token in _many(event["output_ids"])]
    assert ids == whole["output_ids"]
    assert [event["finish_reason"] for event in events[:-1]] == [""] * (len(events) - 1)
    assert events[-1]["finish_reason"] == "stop"


def _many(value: Any) -> list[int]:
    """Triton writes a tensor of one value without a list."""
    return value if isinstance(value, list) else [value]


@needs_server
@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "the request has no prompt; allowed: exactly one of"),
        ({"text_input": "a", "input_ids": [1, 2]}, "exactly one of text_input, messages, input_ids"),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"text_input": "a", "max_tokens": 9999}, "at most max_seq_len, 512"),
        ({"input_ids": [1, 9999]}, "prompt_token_ids[1] is 9999"),
        ({"text_input": "a", "algorithm": "Magic"}, "algorithm is 'Magic'"),
        ({"text_input": "a", "steps": 3}, "only LowConfidence"),
        ({"text_input": "a", "temperature": -1.0}, "temperature is -1.0"),
        ({"messages": "{"}, "messages is not valid JSON"),
        ({"messages": '[{"role": "robot", "content": "x"}]'}, "role 'robot'"),
        ({"text_input": ""}, "prompt is empty"),
    ],
)
def test_bad_requests_get_the_runtimes_words(server: Server, given: dict[str, Any], complaint: str) -> None:
    before = server.metrics()["d3llm_rejected_requests_total"]
    assert complaint in server.generate(**given)["error"]
    (event,) = server.stream(**given)
    assert complaint in event["error"]
    time.sleep(0.2)
    assert server.metrics()["d3llm_rejected_requests_total"] == before + 2


@needs_server
def test_many_clients_at_once_are_all_answered(server: Server) -> None:
    """Mixed lengths and settings: nothing is lost, nothing is crossed."""
    before = server.metrics()["d3llm_requests_total"]
    asked = [
        {"messages": messages(CHATS[number % 3]), "max_tokens": 48 + number % 40, "block_size": 8 + number % 30}
        for number in range(120)
    ]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda given: server.generate(**given), asked))
    results = [f"#### {result}" for result in QUESTIONS.values()]
    for number, answer in enumerate(answers):
        assert answer["text_output"].endswith(results[number % 3])
    time.sleep(0.3)
    assert server.metrics()["d3llm_requests_total"] == before + 120


@needs_server
def test_a_client_that_leaves_stops_costing(server: Server) -> None:
    before = server.metrics()
    for _ in range(8):
        connection = server.open_stream(messages=messages(CHATS[0]), max_tokens=440, **SLOW)
        connection.read(200)
        connection.close()
    end = time.monotonic() + 20
    while time.monotonic() < end and server.metrics()["d3llm_slots_in_use"] + server.metrics()["d3llm_queue_depth"]:
        time.sleep(0.1)
    assert server.metrics()["d3llm_slots_in_use"] == 0
    # None of them was decoded to its end.
    after = server.metrics()
    assert after["d3llm_requests_total"] == before["d3llm_requests_total"]
    assert after["d3llm_cancelled_requests_total"] == before["d3llm_cancelled_requests_total"] + 8
    assert "Traceback" not in server.log.read_text(errors="replace")
    assert server.generate(messages=messages(CHATS[1]))["text_output"].endswith("#### 53")


@needs_server
def test_a_full_queue_is_refused(engine: Path, tmp_path: Path) -> None:
    write_repository(engine, tmp_path / "repository", RepositoryOptions(max_queue_size=1))
    with open_server(tmp_path / "repository", tmp_path) as server, ThreadPoolExecutor(12) as pool:
        asked = {"messages": messages(CHATS[0]), "max_tokens": 60, **SLOW}
        answers = list(pool.map(lambda _: server.generate(**asked), range(12)))
        refused = [answer["error"] for answer in answers if "error" in answer]
        assert 1 <= len(refused) <= 7 and all("try again later" in error for error in refused)


# Ends, planned and unplanned


@needs_server
def test_unloading_waits_for_work_and_a_killed_backend_is_an_error(engine: Path, tmp_path: Path) -> None:
    write_repository(engine, tmp_path / "repository", RepositoryOptions(exit_on_crash=False))
    arguments = ("--model-control-mode=explicit", "--load-model=d3llm")
    with open_server(tmp_path / "repository", tmp_path, *arguments) as server:
        asked = {"messages": messages(CHATS[0]), "max_tokens": 150, **SLOW}
        answers: list[dict[str, Any]] = []
        client = threading.Thread(target=lambda: answers.append(server.generate(**asked)))
        client.start()
        time.sleep(0.3)
        assert server.post("/v2/repository/models/d3llm/unload", {})[0] == 200
        client.join(30)
        assert len(answers[0]["output_ids"]) == 150
        assert server.post("/v2/repository/models/d3llm/load", {})[0] == 200

        watchdogs = server.watchdogs()
        for pid in server.backend_processes():
            os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        assert "not healthy" in server.generate(**asked)["error"]
        assert time.monotonic() - begin < 10
        assert len(watchdogs) == 1 and wait_for(lambda: have_ended(watchdogs))
        assert server.process.poll() is None and DIED not in server.log.read_text(errors="replace")


def start_clients(server: Server) -> tuple[list[threading.Thread], list[str]]:
    """An answer and a stream over HTTP and one over gRPC, all in work; the list gets how each of them ended."""
    pytest.importorskip("tritonclient.grpc")
    from examples.triton.client import stream

    settings: dict[str, Any] = {"max_tokens": 440, **SLOW}
    begun, ends = threading.Semaphore(0), list[str]()

    def whole() -> None:
        begun.release()
        server.generate(messages=messages(CHATS[0]), **settings)

    def http_stream() -> None:
        connection = server.open_stream(messages=messages(CHATS[0]), **settings)
        while connection.read(100):
            begun.release()

    def grpc_stream() -> None:
        for _ in stream(f"127.0.0.1:{server.grpc}", "d3llm", CHATS[0][0]["content"], **settings):
            begun.release()

    def run(client: Callable[[], None]) -> None:
        try:
            client()
            ends.append("an answer")
        except Exception as error:  # noqa: BLE001 (the clients have errors of their own)
            ends.append(type(error).__name__)

    threads = [threading.Thread(target=run, args=[client], daemon=True) for client in (whole, http_stream, grpc_stream)]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=20)
    assert wait_for(lambda: server.metrics()["d3llm_slots_in_use"] == 3) and not ends
    return threads, ends


@needs_server
def test_a_killed_backend_ends_the_server_and_so_all_requests(engine: Path, tmp_path: Path) -> None:
    write_repository(engine, tmp_path / "repository", RepositoryOptions(instances=2))
    with open_server(tmp_path / "repository", tmp_path) as server:
        threads, ends = start_clients(server)
        backends, watchdogs = server.backend_processes(), server.watchdogs()
        begin = time.monotonic()
        os.kill(backends[0], signal.SIGKILL)
        for thread in threads:
            thread.join(15)
        assert time.monotonic() - begin < 8
        assert sorted(ends) == ["IncompleteRead", "InferenceServerException", "RemoteDisconnected"]
        assert server.process.wait(5) != 0
        assert server.log.read_text(errors="replace").count(DIED) == 1
        assert len(backends) == len(watchdogs) == 2 and wait_for(lambda: have_ended([*backends, *watchdogs]))


BROKEN = """
initialize = TritonPythonModel.initialize

def refuse(self, args):
    if args["model_instance_name"].endswith("_1"):
        raise RuntimeError("not this one")
    initialize(self, args)

TritonPythonModel.initialize = refuse
"""


@needs_server
def test_unloading_and_a_load_that_fails_are_no_crashes(engine: Path, tmp_path: Path) -> None:
    """One instance of the broken model is there, watched, when the other one refuses."""
    model = write_repository(engine, tmp_path / "repository", RepositoryOptions(instances=2))
    code = model / "1" / "model.py"
    sound = code.read_text()
    with open_server(tmp_path / "repository", tmp_path, "--model-control-mode=explicit") as server:
        for text, status in ((sound, 200), (sound + BROKEN, 400)):
            code.write_text(text)
            assert server.post("/v2/repository/models/d3llm/load", {})[0] == status
            assert wait_for(lambda: len(server.backend_processes()) == 2)
        seen = [*server.backend_processes(), *server.watchdogs()]
        assert len(seen) == 4 and "output_ids" in server.generate(input_ids=[1], max_tokens=2)
        assert server.post("/v2/repository/models/d3llm/unload", {})[0] == 200
        assert wait_for(lambda: have_ended(seen)) and server.process.poll() is None
        assert DIED not in server.log.read_text(errors="replace")


@needs_server
@pytest.mark.parametrize(("kind", "busy", "code"), [(signal.SIGINT, False, 0), (signal.SIGKILL, True, -9)])
def test_a_server_that_ends_leaves_no_process(
    engine: Path, tmp_path: Path, kind: signal.Signals, busy: bool, code: int
) -> None:
    """After Ctrl-C, which its backend gets too, and killed in the middle of work."""
    write_repository(engine, tmp_path / "repository")
    with open_server(tmp_path / "repository", tmp_path) as server:
        if busy:
            start_clients(server)
        left = [*server.backend_processes(), *server.watchdogs()]
        if kind == signal.SIGINT:
            os.kill(left[0], kind)
        os.kill(server.process.pid, kind)
        assert server.process.wait(20) == code
        assert len(left) == 2 and wait_for(lambda: have_ended(left))
        assert DIED not in server.log.read_text(errors="replace")


def test_only_triton_is_watched() -> None:
    with pytest.raises(OSError, match="is not the Triton server"):
        Watchdog("d3llm_0", True)


@needs_server
def test_the_example_clients(server: Server) -> None:
    pytest.importorskip("tritonclient.grpc")
    from examples.triton.client import stream

    question = CHATS[0][0]["content"]
    events = list(stream(f"127.0.0.1:{server.grpc}", "d3llm", question, algorithm="LowConfidence"))
    assert "".join(event["text"] for event in events).endswith("#### 57") and events[-1]["reason"] == "stop"
    script = ROOT / "examples" / "triton" / "generate.sh"
    done = subprocess.run([script, f"http://127.0.0.1:{server.http}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("#### 53") == 2, done.stdout + done.stderr


@needs_server
def test_the_command_writes_and_validates(engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "from d3llm_trt.cli.main import main; main()"
    command = [sys.executable, "-c", script, "triton", str(engine), "-o", str(tmp_path / "r"), "--json"]
    done = subprocess.run([*command, "--no-exit-on-crash"], capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout)["name"] == "d3llm"
    text = (tmp_path / "r" / "d3llm" / "config.pbtxt").read_text()
    assert '"exit_on_crash" value: { string_value: "false" }' in text
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    done = subprocess.run([*command[:-1], "--name", "other", "--validate"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "--validate needs tritonserver on the PATH" in done.stderr


@needs_server
def test_validation_asks_a_real_server(engine: Path, tmp_path: Path) -> None:
    environment = tritonserver_on_the_path(tmp_path)
    code = "from d3llm_trt.cli.main import main; main()"
    command = [sys.executable, "-c", code, "triton", str(engine), "-o", str(tmp_path / "r"), "--validate", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["answer"]) == 4
    (tmp_path / "r" / "d3llm" / "1" / "model.py").write_text("raise RuntimeError('broken on purpose')")
    with pytest.raises(EngineError, match="broken on purpose"), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        validate_repository(tmp_path / "r", "d3llm")
