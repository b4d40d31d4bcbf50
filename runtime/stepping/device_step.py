"""One step by kernels alone: gather the windows, run the network, select, commit. The same results as ``run_step``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt.plugins.commit import commit
from d3llm_trt.plugins.gather import gather
from d3llm_trt.plugins.reference import SampleKeys
from d3llm_trt.runtime.decoding.select import select
from d3llm_trt.runtime.decoding.state import DecodingState
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch


@dataclass(frozen=True, order=True)
class Bucket:
    """The sizes of a step: entries of the batch, rows of all windows, candidates. What is not needed is padding."""

    batch: int
    tokens: int
    rows: int


@torch.inference_mode()
def run_bucket(engine: Engine, state: DecodingState, slots: Tensor, bucket: Bucket) -> Tensor:
    """One pass for the requests in ``slots[bucket.batch]``, on a GPU with compiled kernels; returns the report.

    Entries of ``slots`` that name no slot (``max_batch_size``, say) report zeros. Every shape comes from ``bucket``,
    so the step can be captured and replayed for any requests that fit it.
    """
    config, width = engine.spec.model_config, engine.spec.max_seq_len
    settings, progress = vars(state.settings), vars(state.progress)
    sizes = {"width": width, "tokens": bucket.tokens, "rows": bucket.rows}
    found = gather(settings, progress, slots, **sizes, shifted=config.shifted_logits)
    batch = ForwardBatch(found.token_ids, found.positions, found.cu_window, found.kv_lengths, slots, found.logit_rows)
    keys = SampleKeys(found.temperature, found.seed, found.position, found.number)
    selected = select(engine.forward(batch), config.mask_token_id, found.entropy_eps, keys)
    return commit(
        settings, progress, vars(selected), slots, found.chosen,
        width=width, mask_id=config.mask_token_id, family=config.family,
    )  # fmt: skip
