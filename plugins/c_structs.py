"""The structs of ``c_api/d3llm_kernels.h`` for ctypes, field by field in its order."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import fields
from typing import Any

from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings

INVALID_ARGUMENT = 1


def _of(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Params(ctypes.Structure):
    """A launcher's arguments; ``struct_size`` is filled in."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"struct_size": ctypes.sizeof(self), **values})


class AttentionParams(Params):
    """``d3llm_attention_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        *_of(c_void_p, "qkv kv_cache out positions cu_window kv_lengths slots cos sin out_scale"),
        *_of(c_int64, "tokens batch num_slots max_seq_len"),
        *_of(c_int32, "num_heads num_kv_heads head_dim dtype"),
    ]


class SelectParams(Params):
    """``d3llm_select_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        *_of(c_void_p, "logits"),
        *_of(c_int64, "rows vocab_size row_stride mask_id"),
        *_of(c_void_p, "entropy_eps temperature seed position number top_k top_p barred"),
        *_of(c_void_p, "greedy sampled entropy confidence logprob greedy_logprob"),
        *_of(c_int32, "dtype"),
    ]


class Settings(ctypes.Structure):
    """``d3llm_settings``."""

    _fields_ = [(item.name, c_void_p) for item in fields(RequestSettings)]


class Progress(ctypes.Structure):
    """``d3llm_progress``."""

    _fields_ = [(item.name, c_void_p) for item in fields(RequestProgress)]


_WITH_STATE = [("struct_size", c_size_t), ("settings", Settings), ("progress", Progress)]


class GatherParams(Params):
    """``d3llm_gather_params``."""

    _fields_ = [
        *_WITH_STATE,
        *_of(c_void_p, "slots token_ids positions cu_window kv_lengths logit_rows chosen"),
        *_of(c_void_p, "entropy_eps temperature seed position number top_k top_p barred"),
        *_of(c_int64, "batch num_slots max_seq_len width tokens rows"),
        *_of(c_int32, "shifted"),
    ]


class CommitParams(Params):
    """``d3llm_commit_params``."""

    _fields_ = [
        *_WITH_STATE,
        *_of(c_void_p, "slots chosen greedy sampled entropy confidence logprob greedy_logprob summary"),
        *_of(c_int64, "batch num_slots max_seq_len width rows mask_id"),
        *_of(c_int32, "family"),
    ]


class RmsNormParams(Params):
    """``d3llm_rms_norm_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        *_of(c_void_p, "x residual weight sum_out out out_scale"),
        *_of(c_int64, "rows hidden_size"),
        ("eps", c_float),
        *_of(c_int32, "dtype out_dtype"),
    ]


class SiluMulParams(Params):
    """``d3llm_silu_mul_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        *_of(c_void_p, "gate_up out out_scale"),
        *_of(c_int64, "rows intermediate_size"),
        *_of(c_int32, "dtype out_dtype"),
    ]


# By the name of the launcher without its prefix, as in ``d3llm_write_kv``.
LAUNCHERS: dict[str, type[Params]] = {
    "write_kv": AttentionParams,
    "attend": AttentionParams,
    "window_attention": AttentionParams,
    "select": SelectParams,
    "gather": GatherParams,
    "commit": CommitParams,
    "rms_norm": RmsNormParams,
    "silu_mul": SiluMulParams,
}
