"""The structs of ``c_api/d3llm_kernels.h`` for ctypes, field by field in its order."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import fields
from typing import Any

from d3llm_trt.plugins.state_fields import RequestProgress, RequestSettings

INVALID_ARGUMENT = 1


def _pointers(names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names.split()]


def _sizes(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int64) for name in names.split()]


def _codes(names: str) -> list[tuple[str, Any]]:
    return [(name, c_int32) for name in names.split()]


class Params(ctypes.Structure):
    """A launcher's arguments; ``struct_size`` is filled in."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"struct_size": ctypes.sizeof(self), **values})


class AttentionParams(Params):
    """``d3llm_attention_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        *_pointers("qkv kv_cache out positions cu_window kv_lengths slots cos sin out_scale"),
        *_sizes("tokens batch num_slots max_seq_len"),
        *_codes("num_heads num_kv_heads head_dim dtype"),
    ]


class SelectParams(Params):
    """``d3llm_select_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        *_pointers("logits"),
        *_sizes("rows vocab_size row_stride mask_id"),
        *_pointers("entropy_eps temperature seed position number top_k top_p barred"),
        *_pointers("greedy sampled entropy confidence logprob greedy_logprob"),
        *_codes("dtype"),
    ]


class Settings(ctypes.Structure):
    """``d3llm_settings``."""

    _fields_ = _pointers(" ".join(item.name for item in fields(RequestSettings)))


class Progress(ctypes.Structure):
    """``d3llm_progress``."""

    _fields_ = _pointers(" ".join(item.name for item in fields(RequestProgress)))


class GatherParams(Params):
    """``d3llm_gather_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("settings", Settings),
        ("progress", Progress),
        *_pointers("slots token_ids positions cu_window kv_lengths logit_rows chosen"),
        *_pointers("entropy_eps temperature seed position number top_k top_p barred"),
        *_sizes("batch num_slots max_seq_len width tokens rows"),
        *_codes("shifted"),
    ]


class CommitParams(Params):
    """``d3llm_commit_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("settings", Settings),
        ("progress", Progress),
        *_pointers("slots chosen greedy sampled entropy confidence logprob greedy_logprob summary"),
        *_sizes("batch num_slots max_seq_len width rows mask_id"),
        *_codes("family"),
    ]


class RmsNormParams(Params):
    """``d3llm_rms_norm_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        *_pointers("x residual weight sum_out out out_scale"),
        *_sizes("rows hidden_size"),
        ("eps", c_float),
        *_codes("dtype out_dtype"),
    ]


class SiluMulParams(Params):
    """``d3llm_silu_mul_params``."""

    _fields_ = [
        ("struct_size", c_size_t),
        *_pointers("gate_up out out_scale"),
        *_sizes("rows intermediate_size"),
        *_codes("dtype out_dtype"),
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
