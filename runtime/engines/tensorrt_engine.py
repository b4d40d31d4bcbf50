"""The engines over a TensorRT plan: padded windows with native attention, packed ones with our plugin."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from d3llm_trt.errors import EngineError
from d3llm_trt.manifest import Manifest
from d3llm_trt.runtime.engines.base import Engine, EngineSpec, ForwardBatch
from d3llm_trt.runtime.engines.kv_cache import allocate_kv_cache
from d3llm_trt.runtime.engines.padded import PaddedEngine, Session
from d3llm_trt.runtime.engines.tensorrt_session import TensorRTSession, open_plan
from d3llm_trt.tensorrt_module import load_tensorrt


def load_tensorrt_engine(directory: Path, manifest: Manifest, spec: EngineSpec) -> Engine:
    """The engine in a verified directory. Raises EngineError on a machine or GPU that cannot run its plan."""
    if spec.device.type != "cuda":
        raise EngineError(f"a {manifest.backend} plan needs an NVIDIA GPU; for the CPU build with --backend torch")
    options = manifest.build_config.tensorrt
    assert options is not None
    trt = load_tensorrt(manifest.backend, lean=options.version_compatible)
    engine = open_plan(trt, directory, manifest, spec.device)
    rtx = manifest.backend == "tensorrt-rtx"
    cache = directory.with_name(f"{directory.name}.rtx-cache") if rtx else None
    return engine_over(spec, manifest, TensorRTSession(trt, engine, spec.device, cache))


def engine_over(spec: EngineSpec, manifest: Manifest, session: Session) -> Engine:
    """The engine class that feeds the plan's attention."""
    if manifest.build_config.plan.attention == "native":
        return PaddedEngine(spec, session)
    return PackedEngine(spec, session, manifest.build_config.max_batch_size)


class PackedEngine:
    """The Engine protocol over a session that takes the contract's packed tensors as they are.

    ``slots`` are the plan's, whose cache has that size whatever ``spec.max_batch_size`` says.
    """

    def __init__(self, spec: EngineSpec, session: Session, slots: int) -> None:
        self.spec = replace(spec, layout="packed", graph_capturable=True)
        self._session = session
        self.kv_cache = allocate_kv_cache(spec.model_config, slots, spec.max_seq_len, spec.dtype, spec.device)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch) -> Tensor:
        rows, vocab = len(batch.logit_rows), self.spec.model_config.vocab_size
        logits = torch.empty(rows, vocab, dtype=self.spec.dtype, device=batch.token_ids.device)
        tensors = {**vars(batch), "logits": logits}
        for layer, cache in enumerate(self.kv_cache):
            tensors[f"kv_cache.{layer}"] = tensors[f"kv_cache.{layer}.updated"] = cache
        self._session.run(tensors)
        return logits

    def close(self) -> None:
        self._session.close()
