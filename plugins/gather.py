"""The gather kernel in torch: the packed windows and candidates of a step, from the state of all slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt.plugins.c_structs import GatherParams
from d3llm_trt.plugins.decoding_state import BoundState
from d3llm_trt.plugins.state_fields import END_IDS
from d3llm_trt.plugins.tensors import address, launch

_BY_TOKEN = ("token_ids", "positions")
_BY_ROW = ("logit_rows", "chosen", "seed", "position", "number", "top_k")
_FLOATS = ("entropy_eps", "temperature")


@dataclass(frozen=True)
class Gathered:
    """What the forward pass and select read, all int64 but for three.

    ``token_ids``, ``positions`` ``[T]``; ``cu_window[B + 1]``; ``kv_lengths[B]``; ``barred[R, 8]``; the rest ``[R]``:
    ``entropy_eps`` and ``temperature`` in float32, ``top_p`` in float64. Behind the windows and candidates is padding:
    position 0, and ``chosen = B * width``.
    """

    token_ids: Tensor
    positions: Tensor
    cu_window: Tensor
    kv_lengths: Tensor
    logit_rows: Tensor
    chosen: Tensor
    entropy_eps: Tensor
    temperature: Tensor
    seed: Tensor
    position: Tensor
    number: Tensor
    top_k: Tensor
    top_p: Tensor
    barred: Tensor


def gather(state: BoundState, slots: Tensor, *, width: int, tokens: int, rows: int, shifted: bool) -> Gathered:
    """The windows of ``slots[B]`` in ``tokens`` rows and their candidates in ``rows``, on the current CUDA stream.

    Entries of ``slots`` (int64) that name no slot have no rows. ``shifted``: row i scores position i + 1 (spec A.4).
    Raises PluginError.
    """
    gathered = _allocated(slots, tokens, rows)
    params = GatherParams(
        settings=state.settings,
        progress=state.progress,
        slots=address("gather: slots", slots, torch.int64, (len(slots),), state.device),
        **{name: tensor.data_ptr() for name, tensor in vars(gathered).items()},
        batch=len(slots),
        num_slots=state.num_slots,
        max_seq_len=state.max_seq_len,
        width=width,
        tokens=tokens,
        rows=rows,
        shifted=int(shifted),
    )
    launch("gather", params, state.device)
    return gathered


def _allocated(slots: Tensor, tokens: int, rows: int) -> Gathered:
    batch = len(slots)
    return Gathered(
        **{name: slots.new_empty(tokens) for name in _BY_TOKEN},
        **{name: slots.new_empty(rows) for name in _BY_ROW},
        **{name: slots.new_empty(rows, dtype=torch.float32) for name in _FLOATS},
        top_p=slots.new_empty(rows, dtype=torch.float64),
        barred=slots.new_empty(rows, END_IDS),
        cu_window=slots.new_empty(batch + 1),
        kv_lengths=slots.new_empty(batch),
    )
