"""The torch engine: packed weights and TorchOps, on the CPU (the reference) or a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from d3llm_trt.dtypes import HALF, dtype_name, torch_dtype
from d3llm_trt.errors import EngineError
from d3llm_trt.gpus import OLDEST_FOR, capability_name
from d3llm_trt.manifest import REBUILD, WEIGHTS_FILE, Manifest
from d3llm_trt.model.packing import TensorForm, packed_tensors
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.model.transformer import forward
from d3llm_trt.plugins.ops import is_compiled
from d3llm_trt.runtime.engines.base import EngineSpec, ForwardBatch
from d3llm_trt.runtime.engines.kv_cache import allocate_kv_cache
from d3llm_trt.settings import require


class TorchEngine:
    """The Engine protocol over torch tensors.

    Args:
        spec: what it is and can take; its KV cache is allocated here. Where attention runs in our kernel, nothing waits
            for the GPU, so the engine's own spec says that it can be captured.
        weights: the tensors of :func:`packed_tensors` for the spec's dtype and quantization by name, on its device.

    Raises EngineError if the KV cache does not fit the memory.
    """

    def __init__(self, spec: EngineSpec, weights: Mapping[str, Tensor]) -> None:
        compiled = spec.device.type == "cuda" and is_compiled(
            "window_attention", spec.dtype, spec.model_config.head_dim
        )
        self.spec = replace(spec, graph_capturable=compiled)
        self._weights = weights
        self._tables = rotary_tables(spec.model_config, spec.max_seq_len, spec.device)
        self.kv_cache = allocate_kv_cache(
            spec.model_config, spec.max_batch_size, spec.max_seq_len, spec.dtype, spec.device
        )

    @classmethod
    def load(cls, directory: Path, manifest: Manifest, spec: EngineSpec) -> TorchEngine:
        """Load an engine directory whose files were verified. Raises EngineError naming what is wrong."""
        check_precision(spec)
        forms = packed_tensors(manifest.model_config, manifest.build_config.dtype, spec.quantization)
        return cls(spec, _load_weights(directory / WEIGHTS_FILE, forms, spec.device))

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        config = self.spec.model_config
        windows = Windows(batch.positions, batch.cu_window, batch.kv_lengths, batch.slots)
        ops = TorchOps(config, self._weights, self.kv_cache, windows, self._tables)
        return forward(config, ops, batch.token_ids, batch.logit_rows)

    def close(self) -> None:
        """Nothing is kept."""


def check_precision(spec: EngineSpec) -> None:
    """Raise ConfigError on FP8 with float32, and EngineError on a GPU without FP8."""
    if spec.quantization is None:
        return
    dtype = dtype_name(spec.dtype)
    require(dtype in HALF, "dtype", dtype, f"{', '.join(HALF)} with {spec.quantization}")
    if spec.device.type != "cuda":
        return
    capability, least = torch.cuda.get_device_capability(spec.device), OLDEST_FOR[spec.quantization]
    if capability < least:
        gpu = f"{spec.device} of compute capability {capability_name(capability)}"
        needed = f"{capability_name(least)} or newer"
        fix = "use a newer GPU, or build the engine without quantization"
        raise EngineError(f"quantization is {spec.quantization!r}, which {gpu} cannot; it needs {needed}: {fix}")


def _load_weights(path: Path, forms: Mapping[str, TensorForm], device: torch.device) -> dict[str, Tensor]:
    """Every packed weight by name; on the CPU the file stays mapped."""
    expected = {name: (form.shape, torch_dtype(form.dtype)) for name, form in forms.items()}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EngineError(f"{path}: cannot be read: {error}; {REBUILD}") from error
    except RuntimeError as error:  # also torch.OutOfMemoryError
        raise EngineError(f"{path}: the weights do not fit the memory of {device}: {error}") from error
    actual = {name: (tuple(weight.shape), weight.dtype) for name, weight in weights.items()}
    if wrong := sorted(name for name in expected.keys() | actual.keys() if actual.get(name) != expected.get(name)):
        raise EngineError(f"{path}: tensor {wrong[0]} is not what its manifest says; {REBUILD}")
    return weights
