"""What a user names to a running engine: which class runs a backend, and on which device."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from d3llm_trt.config import BACKENDS
from d3llm_trt.dtypes import torch_dtype
from d3llm_trt.engine_source import engine_for
from d3llm_trt.errors import EngineError
from d3llm_trt.gpus import DEVICES, OLDEST_GPU, check_device_name
from d3llm_trt.manifest import Manifest
from d3llm_trt.progress import OnProgress
from d3llm_trt.runtime.engines.base import Engine, EngineSpec
from d3llm_trt.runtime.engines.tensorrt_engine import load_tensorrt_engine
from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from d3llm_trt.runtime.memory import check_memory
from d3llm_trt.settings import require
from d3llm_trt.tokenizer import Tokenizer


def open_engine(
    model: str | Path,
    device: torch.device,
    *,
    backend: str | None = None,
    dtype: str | None = None,
    max_batch_size: int | None = None,
    progress: OnProgress | None = None,
) -> tuple[Engine, Tokenizer | None]:
    """The engine of an engine directory, or of a checkpoint, which is built first, and its tokenizer if it has one.

    Raises ConfigError, CheckpointError, BuildError or EngineError, before anything is built where it will not fit.
    """
    require(backend in (None, *BACKENDS), "backend", backend, f"{', '.join(BACKENDS)}, or None for the engine's")
    if backend not in (None, "torch") and device.type != "cuda":
        raise EngineError(f"a {backend} plan needs an NVIDIA GPU; for the CPU leave out the backend")
    check = partial(check_memory, device=device, max_batch_size=max_batch_size)
    directory, manifest = engine_for(
        model, backend=backend, dtype=dtype, max_batch_size=max_batch_size, check=check, progress=progress
    )
    engine = load_engine(directory, manifest, device=device, max_batch_size=max_batch_size)
    return engine, Tokenizer.load(directory)


def load_engine(
    directory: Path, manifest: Manifest, *, device: torch.device, max_batch_size: int | None = None
) -> Engine:
    """The engine in a verified directory. Raises ConfigError or EngineError."""
    build = manifest.build_config
    spec = EngineSpec(
        model_config=manifest.model_config,
        backend=manifest.backend,
        dtype=torch_dtype(build.dtype),
        device=device,
        max_batch_size=max_batch_size or build.max_batch_size,
        max_seq_len=build.max_seq_len,
        max_num_tokens=build.max_num_tokens,
        quantization=build.quantization,
    )
    if manifest.backend == "torch":
        return TorchEngine.load(directory, manifest, spec)
    return load_tensorrt_engine(directory, manifest, spec)


def choose_device(name: str | torch.device | None) -> torch.device:
    """The named device; by default the first GPU that is new enough, or the CPU. Raises ConfigError."""
    usable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST_GPU
    if name is None:
        return torch.device("cuda" if usable else "cpu")
    if not isinstance(name, torch.device):
        check_device_name(name)
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        require((device.index or 0) < count, "device", name, f"{count} GPUs are visible, so cpu or cuda:N with N below")
    sound = device.type == "cuda" or (device.type == "cpu" and not device.index)
    require(sound, "device", name, DEVICES)
    return device
