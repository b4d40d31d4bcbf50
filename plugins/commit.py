"""The commit kernel in torch: all bookkeeping that follows select, in place on the state of all slots."""

from __future__ import annotations

import torch
from torch import Tensor

from d3llm_trt.plugins.c_structs import CommitParams
from d3llm_trt.plugins.decoding_state import BoundState
from d3llm_trt.plugins.reference import Selected
from d3llm_trt.plugins.tensors import address, launch

FAMILY_CODES = {"llada": 0, "dream": 1}
DTYPES = dict.fromkeys(("entropy", "confidence", "logprob", "greedy_logprob"), torch.float32)


def commit(
    state: BoundState, selected: Selected, slots: Tensor, chosen: Tensor, *, width: int, mask_id: int, family: str
) -> Tensor:
    """Commit what a pass selected and plan the next one, on the current CUDA stream; returns the summary ``[B, 5]``.

    ``selected`` is what select gave for the candidates ``chosen[R]``, whose numbers ``b * width + position`` ascend;
    ``B * width`` stands for none. ``slots[B]`` and ``chosen`` are int64. Slots that do not exist, or that come again in
    ``slots``, are left alone and their summary is zeros. Raises PluginError on tensors of another device, dtype, shape
    or layout.
    """
    summary = slots.new_empty(len(slots), 5)
    params = commit_params(state, selected, slots, chosen, summary, width=width, mask_id=mask_id, family=family)
    launch("commit", params, state.device)
    return summary


def commit_params(
    state: BoundState,
    selected: Selected,
    slots: Tensor,
    chosen: Tensor,
    summary: Tensor,
    *,
    width: int,
    mask_id: int,
    family: str,
) -> CommitParams:
    """The C struct over these tensors, which must outlive its use. Raises PluginError on a tensor that does not fit."""

    def pointer(name: str, tensor: Tensor, *shape: int) -> int:
        return address(f"commit: {name}", tensor, DTYPES.get(name, torch.int64), shape, state.device)

    batch, rows = len(slots), len(chosen)
    return CommitParams(
        settings=state.settings,
        progress=state.progress,
        **{name: pointer(name, tensor, rows) for name, tensor in vars(selected).items()},
        slots=pointer("slots", slots, batch),
        chosen=pointer("chosen", chosen, rows),
        summary=pointer("summary", summary, batch, 5),
        batch=batch,
        num_slots=state.num_slots,
        max_seq_len=state.max_seq_len,
        width=width,
        rows=rows,
        mask_id=mask_id,
        family=FAMILY_CODES[family],
    )
