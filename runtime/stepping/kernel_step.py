"""One step by kernels alone: gather the windows, run the network, select, commit. The same results as ``run_step``."""

from __future__ import annotations

import torch
from torch import Tensor

from d3llm_trt.plugins.commit import commit
from d3llm_trt.plugins.decoding_state import BoundState
from d3llm_trt.plugins.gather import gather
from d3llm_trt.plugins.reference import Limits, SampleKeys
from d3llm_trt.runtime.decoding.select import select
from d3llm_trt.runtime.decoding.step import StepSizes
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch


@torch.inference_mode()
def kernel_step(engine: Engine, state: BoundState, slots: Tensor, sizes: StepSizes) -> Tensor:
    """One pass for the requests in ``slots[B]``, on a GPU with compiled kernels; returns its summary ``[B, 5]``.

    Entries of ``slots`` that name no slot (``max_batch_size``, say) have a summary of zeros. Every shape comes from
    ``sizes``, so the step can be captured and replayed for any requests that fit it.
    """
    config, width = engine.spec.model_config, engine.spec.max_seq_len
    windows = gather(state, slots, width=width, tokens=sizes.tokens, rows=sizes.rows, shifted=config.shifted_logits)
    batch = ForwardBatch(
        windows.token_ids, windows.positions, windows.cu_window, windows.kv_lengths, slots, windows.logit_rows
    )
    keys = SampleKeys(windows.temperature, windows.seed, windows.position, windows.number)
    limits = Limits(windows.top_k, windows.top_p)
    logits, eps = engine.forward(batch), windows.entropy_eps
    selected = select(logits, config.mask_token_id, eps, keys, limits, windows.barred)
    return commit(
        state, selected, slots, windows.chosen, width=width, mask_id=config.mask_token_id, family=config.family
    )
