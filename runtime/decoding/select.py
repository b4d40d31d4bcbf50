"""Select: one pass over each candidate's logits row gives its token, entropy and confidence."""

from __future__ import annotations

from torch import Tensor

from d3llm_trt.plugins import ops
from d3llm_trt.plugins.reference import Limits, SampleKeys, Selected

__all__ = ["Limits", "SampleKeys", "Selected", "select"]


def select(
    logits: Tensor,
    mask_id: int,
    eps: Tensor,
    keys: SampleKeys | None,
    limits: Limits | None = None,
    barred: Tensor | None = None,
) -> Selected:
    """Select from ``logits[R, vocab]``, see :func:`d3llm_trt.plugins.reference.select`: a kernel on a GPU."""
    sampling = [None] * 4 if keys is None else [keys.temperature, keys.seed, keys.position, keys.number]
    limiting = [None] * 2 if limits is None else [limits.top_k, limits.top_p]
    return Selected(*ops.select(logits, mask_id, eps, *sampling, *limiting, barred))
