"""Select: one pass over each candidate's logits row gives its token, entropy and confidence."""

from __future__ import annotations

from torch import Tensor

from d3llm_trt.plugins import ops
from d3llm_trt.plugins.reference import SampleKeys, Selected

__all__ = ["SampleKeys", "Selected", "select"]


def select(logits: Tensor, mask_id: int, eps: Tensor, keys: SampleKeys | None) -> Selected:
    """Select from ``logits[R, vocab]``, see :func:`d3llm_trt.plugins.reference.select`: a kernel on a GPU."""
    given = () if keys is None else (keys.temperature, keys.seed, keys.position, keys.number)
    return Selected(*ops.select(logits, mask_id, eps, *given))
