"""The commit kernel in torch: all bookkeeping that follows select, in place on the state of all slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from d3llm_trt.plugins.c_structs import CommitParams, Progress, Settings
from d3llm_trt.plugins.tensors import address, launch

FAMILY_CODES = {"llada": 0, "dream": 1}
SETTINGS = tuple(name for name, _ in Settings._fields_)
PROGRESS = tuple(name for name, _ in Progress._fields_)
SELECTED = ("greedy", "sampled", "entropy", "confidence")

_BY_POSITION = ("canvas", "commit_steps", "candidates")
_BY_BLOCK = ("active", "block_cached", "done_pass")
_DTYPES = {
    **dict.fromkeys(("by_quota", "cached", "candidates", "active", "block_cached", "done", "failed"), torch.bool),
    **dict.fromkeys(("threshold", "entropy_eps", "temperature", "entropy", "confidence"), torch.float32),
    **dict.fromkeys(("block_add_threshold", "decoded_token_threshold"), torch.float64),
}  # int64 for the rest


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
    num_slots, max_seq_len = progress[PROGRESS.index("canvas")].shape
    shapes = {
        **dict.fromkeys(_BY_POSITION, (num_slots, max_seq_len)),
        **dict.fromkeys(_BY_BLOCK, (num_slots, max_seq_len + 1)),
        **dict.fromkeys((*SELECTED, "chosen"), (len(chosen),)),
        **dict.fromkeys(("slots",), (len(slots),)),
        **dict.fromkeys(("report",), (len(slots), 5)),
    }

    def pointer(name: str, tensor: Tensor) -> int:
        shape = shapes.get(name, (num_slots,))
        return address(f"commit: {name}", tensor, _DTYPES.get(name, torch.int64), shape, slots.device)

    return CommitParams(
        settings=Settings(*map(pointer, SETTINGS, settings)),
        progress=Progress(*map(pointer, PROGRESS, progress)),
        **{name: pointer(name, tensor) for name, tensor in zip(SELECTED, selected, strict=True)},
        slots=pointer("slots", slots),
        chosen=pointer("chosen", chosen),
        report=pointer("report", report),
        batch=len(slots),
        num_slots=num_slots,
        max_seq_len=max_seq_len,
        width=width,
        rows=len(chosen),
        mask_id=mask_id,
        family=family,
    )


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
    report = slots.new_empty(len(slots), 5)
    params = commit_params(settings, progress, selected, slots, chosen, width, mask_id, family, report)
    launch("commit", params, slots.device)
    return report


@_commit_op.register_fake
def _(
    settings: Sequence[Tensor],
    progress: Sequence[Tensor],
    selected: Sequence[Tensor],
    slots: Tensor,
    chosen: Tensor,
    width: int,
    mask_id: int,
    family: int,
) -> Tensor:
    return slots.new_empty(len(slots), 5)
