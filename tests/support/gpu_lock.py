"""Only one process at a time runs tests on a GPU: some fill its memory on purpose."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

PATH = Path(tempfile.gettempdir()) / "d3llm_trt_gpu_tests.lock"


@functools.cache
def hold_gpu(path: Path = PATH) -> FileLock:
    """The lock, held until this process ends. Raises RuntimeError while another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(f"another process runs tests on a GPU and holds {path}; run them one at a time") from error
    return lock
