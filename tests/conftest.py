"""What every test runs under: one torch thread (tests run side by side), and a cache directory of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import tensorrt_uses
from tests.support.gpu_lock import hold_gpu

torch.set_num_threads(1)
# A shell starts what runs in the background with these ignored, and processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is read from or written to the user's own cache directory."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D3LLM_TRT_CACHE", str(path))
        yield path


@pytest.fixture(autouse=True)
def no_use_of_tensorrt_is_wrong() -> Iterator[None]:
    """Whatever the test noted of TensorRT's API is there in the real bindings that `make bindings` fetched."""
    tensorrt_uses.NOTED.clear()
    yield
    if objections := tensorrt_uses.objections(tensorrt_uses.NOTED):
        pytest.fail("\n".join(objections), pytrace=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``gpu`` have the GPUs to themselves, or fail with a word."""
    if torch.cuda.is_available() and item.get_closest_marker("gpu"):
        try:
            hold_gpu()
        except RuntimeError as error:
            pytest.fail(str(error), pytrace=False)
