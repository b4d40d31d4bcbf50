"""The commit kernel in torch: all bookkeeping that follows select, in place on the state of all slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from d3llm_trt.plugins.c_structs import CommitParams
from d3llm_trt.plugins.decoding_state import PROGRESS, SETTINGS, state_size, state_structs
from d3llm_trt.plugins.tensors import address, launch

FAMILY_CODES = {"llada": 0, "dream": 1}
SELECTED = ("greedy", "sampled", "entropy", "confidence")


def commit(
    settings: Mapping[str, Tensor],
    progress: Mapping[str, Tensor],
    selected: Mapping[str, Tensor],
    slots: Tensor,
    chosen: Tensor,
    *,
    width: int,
    mask_id: int,
    family: str,
) -> Tensor:
    """Commit what a pass selected and plan the next one, on the current CUDA stream; returns the report ``[B, 5]``.

    ``settings`` and ``progress`` hold the fields of the decoding state of all slots, ``selected`` select's four of the
    candidates ``chosen[R]``, numbered as ``b * width + position`` in ascending order, ``B * width`` for none;
    ``slots[B]`` and ``chosen`` are int64. Slots that do not exist, or that come again in ``slots``, are left alone and
    report zeros. Raises PluginError on tensors of another device, dtype, shape or layout.
    """
    report: Tensor = torch.ops.d3llm.commit(
        [settings[name] for name in SETTINGS],
        [progress[name] for name in PROGRESS],
        [selected[name] for name in SELECTED],
        slots,
        chosen,
        width,
        mask_id,
        FAMILY_CODES[family],
    )
    return report


def commit_params(
    settings: Sequence[Tensor],
    progress: Sequence[Tensor],
    selected: Sequence[Tensor],
    slots: Tensor,
    chosen: Tensor,
    width: int,
    mask_id: int,
    family: int,
    report: Tensor,
) -> CommitParams:
    """The C struct over these tensors, which must outlive its use. Raises PluginError on a tensor that does not fit."""
    num_slots, max_seq_len = state_size(progress)
    settings_struct, progress_struct = state_structs("commit", settings, progress, slots.device)

    def pointer(name: str, tensor: Tensor, *shape: int) -> int:
        dtype = torch.float32 if name in ("entropy", "confidence") else torch.int64
        return address(f"commit: {name}", tensor, dtype, shape, slots.device)

    rows = len(chosen)
    return CommitParams(
        settings=settings_struct,
        progress=progress_struct,
        **{name: pointer(name, tensor, rows) for name, tensor in zip(SELECTED, selected, strict=True)},
        slots=pointer("slots", slots, len(slots)),
        chosen=pointer("chosen", chosen, rows),
        report=pointer("report", report, len(slots), 5),
        batch=len(slots),
        num_slots=num_slots,
        max_seq_len=max_seq_len,
        width=width,
        rows=rows,
        mask_id=mask_id,
        family=family,
    )


def _new_report(settings: object, progress: object, selected: object, slots: Tensor, *_: object) -> Tensor:
    return slots.new_empty(len(slots), 5)


@torch.library.custom_op(
    "d3llm::commit",
    mutates_args=("progress",),
    device_types="cuda",
    schema=(
        "(Tensor[] settings, Tensor(a!)[] progress, Tensor[] selected, Tensor slots, Tensor chosen, int width, "
        "int mask_id, int family) -> Tensor"
    ),
)
def _commit_op(
    settings: Sequence[Tensor],
    progress: Sequence[Tensor],
    selected: Sequence[Tensor],
    slots: Tensor,
    chosen: Tensor,
    width: int,
    mask_id: int,
    family: int,
) -> Tensor:
    report = _new_report(settings, progress, selected, slots)
    params = commit_params(settings, progress, selected, slots, chosen, width, mask_id, family, report)
    launch("commit", params, slots.device)
    return report


_commit_op.register_fake(_new_report)
