"""Two processes do not run tests on a GPU at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gpu_lock import hold_gpu
from tests.support.tiny_models import ROOT


def test_a_second_process_is_refused_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    code = "import sys\nfrom pathlib import Path\nfrom tests.support.gpu_lock import hold_gpu\n"
    code += "lock = hold_gpu(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="another process runs tests on a GPU"):
            hold_gpu(path)
        other.communicate("")
    assert hold_gpu(path) is hold_gpu(path)
