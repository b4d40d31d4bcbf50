"""What the tests of the faces share: an engine that chats."""

from __future__ import annotations

from pathlib import Path

import pytest

from d3llm_trt import build_engine
from tests.support.tiny_models import CHECKPOINTS


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that chats."""
    return build_engine(CHECKPOINTS["llada"], tmp_path_factory.mktemp("engine") / "llada")
