"""A real Triton Inference Server on loopback.

It comes from the nvidia-pytriton wheel in ``out/tritonserver`` (``make triton``), with a Python environment beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d3llm_trt import BuildConfig, build_engine
from d3llm_trt.serving.triton.validation import free_ports
from tests.support.tiny_models import CHECKPOINTS, ROOT

INSTALLED = ROOT / "out" / "tritonserver"


def make_engine(folder: Path) -> Path:
    """The engine that the tests serve, in ``folder``."""
    return build_engine(CHECKPOINTS["llada"], folder / "llada", BuildConfig(max_batch_size=4, max_seq_len=512))


def find_server() -> Path | None:
    """The folder with ``bin/tritonserver``, or None."""
    root = INSTALLED / "pytriton" / "tritonserver"
    return root if (root / "bin" / "tritonserver").exists() else None


@contextmanager
def open_server(repository: Path, work: Path, *arguments: str, seconds: float = 60) -> Iterator[Server]:
    """A server that is ready within ``seconds``, closed at the end."""
    root = find_server()
    assert root is not None
    server = Server(root, repository, work, *arguments)
    try:
        yield server.wait(seconds)
    finally:
        server.close()


def tritonserver_on_the_path(work: Path) -> dict[str, str]:
    """An environment in which ``tritonserver`` is a command that knows where its backends are."""
    root = find_server()
    assert root is not None
    command = work / "bin" / "tritonserver"
    command.parent.mkdir()
    server, backends = root / "bin" / "tritonserver", _backends(root, work)
    command.write_text(f'#!/bin/sh\nexec "{server}" --backend-directory="{backends}" "$@"\n')
    command.chmod(0o755)
    environment = _environment()
    return {**environment, "PATH": os.pathsep.join([str(command.parent), environment["PATH"]])}


class Server:
    """Serves one repository until it is closed."""

    def __init__(self, root: Path, repository: Path, work: Path, *arguments: str) -> None:
        self.http, self.grpc, metrics = free_ports(3)
        self.metrics_url = f"http://127.0.0.1:{metrics}/metrics"
        self.log = work / "server.log"
        self._memory = f"d3llm{os.getpid()}-{self.http}-"
        command = [
            str(root / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={_backends(root, work)}",
            "--http-address=127.0.0.1", f"--http-port={self.http}",
            "--grpc-address=127.0.0.1", f"--grpc-port={self.grpc}",
            "--metrics-address=127.0.0.1", f"--metrics-port={metrics}", "--metrics-interval-ms=100",
            "--exit-timeout-secs=5",
            f"--backend-config=python,shm-region-prefix-name={self._memory}",
            *arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=self.log.open("wb"), stderr=subprocess.STDOUT, env=_environment(), cwd=work
        )

    def wait(self, seconds: float = 60) -> Server:
        """Until it is ready."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                if self.get("/v2/health/ready")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server is not ready:\n{self.log.read_text(errors='replace')[-4000:]}")

    def get(self, path: str) -> tuple[int, bytes]:
        return self._call(urllib.request.Request(f"http://127.0.0.1:{self.http}{path}"))

    def post(self, path: str, body: Any, timeout: float = 60) -> tuple[int, bytes]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=data, method="POST")
        return self._call(request, timeout)

    @staticmethod
    def _call(request: urllib.request.Request, timeout: float = 10) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def generate(self, timeout: float = 60, **inputs: Any) -> dict[str, Any]:
        """One answer over HTTP; an error as ``{"error": ...}``."""
        _, body = self.post("/v2/models/d3llm/generate", inputs, timeout)
        answer: dict[str, Any] = json.loads(body)
        return answer

    def stream(self, timeout: float = 60, **inputs: Any) -> Iterator[dict[str, Any]]:
        """All events of one streamed answer."""
        _, body = self.post("/v2/models/d3llm/generate_stream", {**inputs, "stream": True}, timeout)
        for line in body.decode().splitlines():
            if line.startswith("data: "):
                yield json.loads(line[6:])

    def open_stream(self, **inputs: Any) -> Any:
        """A streamed answer that is read, or left, by the caller."""
        url = f"http://127.0.0.1:{self.http}/v2/models/d3llm/generate_stream"
        data = json.dumps({**inputs, "stream": True}).encode()
        return urllib.request.urlopen(urllib.request.Request(url, data=data, method="POST"), timeout=60)

    def backend_processes(self) -> list[int]:
        """The Python backend's own processes."""
        return _children(self.process.pid)

    def watchdogs(self) -> list[int]:
        """The processes that watch over the server and its backends."""
        return [pid for backend in self.backend_processes() for pid in _children(backend, "triton/watchdog.py")]

    def metrics(self) -> dict[str, float]:
        """Our own metrics, summed over instances."""
        text = self._call(urllib.request.Request(self.metrics_url))[1].decode()
        sums: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith("d3llm_"):
                name = line.split("{")[0]
                sums[name] = sums.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
        return sums

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for left in Path("/dev/shm").glob(f"{self._memory}*"):  # by a server that was killed
            left.unlink()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it holds in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def have_ended(pids: Iterable[int]) -> bool:
    """Whether none of the processes runs any more."""
    return not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


def _children(pid: int, pattern: str = "") -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", pattern], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def _backends(root: Path, work: Path) -> Path:
    """The backend folder, with the stub of this Python in its place."""
    target = work / "backends" / "python"
    target.mkdir(parents=True, exist_ok=True)
    stub = root / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    for source in (*(root / "backends" / "python").iterdir(), stub):
        if source.is_file() and not (target / source.name).exists():
            (target / source.name).symlink_to(source)
    stub.chmod(0o755)
    return target.parent


def _environment() -> dict[str, str]:
    """The Python backend takes the virtual environment that is on the path."""
    own = INSTALLED / "venv"
    library = sysconfig.get_config_var("LIBDIR") or ""
    known = os.environ.get("LD_LIBRARY_PATH", "")
    return {
        **os.environ,
        "VIRTUAL_ENV": str(own),
        "PATH": os.pathsep.join([str(own / "bin"), os.environ["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [library, known])),
        "OMP_NUM_THREADS": "1",
    }
