"""Serve a repository on loopback once, and ask it something."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from d3llm_trt.errors import EngineError

START_SECONDS, STOP_SECONDS = 300, 60
PROBE = {"input_ids": [0], "max_tokens": 4, "ignore_eos": True}


def find_server() -> str:
    """The path of ``tritonserver``. Raises EngineError if it is not on the PATH."""
    server = shutil.which("tritonserver")
    if server is None:
        raise EngineError("--validate needs tritonserver on the PATH; run it in Triton's container, or leave it out")
    return server


def validate_repository(repository: Path, model: str) -> dict[str, Any]:
    """Start ``tritonserver`` from the path, wait until it is ready, and decode one small request.

    Returns the answer and the seconds it took. Raises EngineError with the end of the server's log.
    """
    server = find_server()
    http, grpc, metrics = free_ports(3)
    addresses = [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    with tempfile.TemporaryFile() as log:
        only = ["--model-control-mode=explicit", f"--load-model={model}"]
        command = [server, f"--model-repository={repository}", *only, *addresses, *ports]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            return _ask(process, f"http://127.0.0.1:{http}", model)
        except OSError as error:
            log.seek(0)
            raise EngineError(f"the server did not answer: {error}; {_errors(log.read())}") from error
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _errors(log: bytes) -> str:
    """What the server logged as errors, the last few lines of it."""
    lines = log.decode(errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"E\d{4} |error:", line)]
    return f"it says: {' | '.join(errors[-3:])[-1500:]}" if errors else "it logged no error"


def _ask(process: subprocess.Popen[bytes], url: str, model: str) -> dict[str, Any]:
    end = time.monotonic() + START_SECONDS
    while not _is_ready(url):
        if process.poll() is not None or time.monotonic() > end:
            raise OSError("it is not ready")
        time.sleep(0.2)
    start = time.monotonic()
    request = urllib.request.Request(f"{url}/v2/models/{model}/generate", json.dumps(PROBE).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=START_SECONDS) as response:
            answer = json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise OSError(error.read().decode(errors="replace")) from error
    return {"answer": answer["output_ids"], "seconds": time.monotonic() - start}


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(server.getsockname()[1]) for server in servers]
