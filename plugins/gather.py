"""The gather kernel in torch: the packed windows and candidates of a step, from the state of all slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt.plugins.c_structs import GatherParams
from d3llm_trt.plugins.decoding_state import PROGRESS, SETTINGS, state_size, state_structs
from d3llm_trt.plugins.tensors import address, launch

_BY_TOKEN = ("token_ids", "positions")
_BY_ROW = ("logit_rows", "chosen", "seed", "position", "number")
_FLOATS = ("entropy_eps", "temperature")


@dataclass(frozen=True)
class Gathered:
    """What the forward pass and select read; int64 but for the float32 ``entropy_eps`` and ``temperature``.

    ``token_ids``, ``positions`` ``[T]``; ``cu_window[B + 1]``; ``kv_lengths[B]``; the rest ``[R]``. Behind the windows
    and candidates is padding: position 0, and ``chosen = B * width``.
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


def gather(
    settings: Mapping[str, Tensor],
    progress: Mapping[str, Tensor],
    slots: Tensor,
    *,
    width: int,
    tokens: int,
    rows: int,
    shifted: bool,
) -> Gathered:
    """The windows of ``slots[B]`` in ``tokens`` rows and their candidates in ``rows``, on the current CUDA stream.

    ``settings`` and ``progress`` hold the contiguous fields of the decoding state of all slots. Entries of ``slots``
    that name no slot have no rows. ``shifted``: row i scores position i + 1 (spec A.4). Raises PluginError.
    """
    fields = [settings[name] for name in SETTINGS], [progress[name] for name in PROGRESS]
    settings_struct, progress_struct = state_structs("gather", *fields, slots.device)
    num_slots, max_seq_len = state_size(fields[1])
    gathered = _allocated(slots, tokens, rows)
    params = GatherParams(
        settings=settings_struct,
        progress=progress_struct,
        slots=address("gather: slots", slots, torch.int64, (len(slots),), slots.device),
        **{name: tensor.data_ptr() for name, tensor in vars(gathered).items()},
        batch=len(slots),
        num_slots=num_slots,
        max_seq_len=max_seq_len,
        width=width,
        tokens=tokens,
        rows=rows,
        shifted=int(shifted),
    )
    launch("gather", params, slots.device)
    return gathered


def _allocated(slots: Tensor, tokens: int, rows: int) -> Gathered:
    batch = len(slots)
    return Gathered(
        **{name: slots.new_empty(tokens) for name in _BY_TOKEN},
        **{name: slots.new_empty(rows) for name in _BY_ROW},
        **{name: slots.new_empty(rows, dtype=torch.float32) for name in _FLOATS},
        cu_window=slots.new_empty(batch + 1),
        kv_lengths=slots.new_empty(batch),
    )
