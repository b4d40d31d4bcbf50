"""The kernels as torch ops ``d3llm::...``: CUDA through the C library on the current stream, the CPU by the reference.

None waits for the GPU when its kernel runs, so all may be captured in a CUDA graph; all have meta functions.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d3llm_trt.errors import PluginError
from d3llm_trt.plugins import library, reference
from d3llm_trt.plugins.c_structs import AttentionParams, RmsNormParams, SelectParams, SiluMulParams
from d3llm_trt.plugins.state_fields import END_IDS
from d3llm_trt.plugins.tensors import address, dtype_code, launch

HALF = (torch.float16, torch.bfloat16)
HEAD_DIMS = (32, 64, 128)
MOST_HIDDEN = 16384


def is_compiled(op: str, dtype: torch.dtype, width: int = 0) -> bool:
    """Whether an op runs in its kernel for CUDA tensors, so without waiting for the GPU; else the reference runs there.

    ``width`` is the head_dim of ``window_attention`` and the hidden size of ``rms_norm``.
    """
    fits = {"window_attention": width in HEAD_DIMS, "rms_norm": 0 < width <= MOST_HIDDEN}.get(op, True)
    dtypes = (*HALF, torch.float32) if op == "select" else HALF
    return fits and dtype in dtypes and _have_kernels()


@functools.cache
def _have_kernels() -> bool:
    if library.available():
        return True
    warnings.warn(f"no compiled CUDA kernels: plain torch runs instead, slower; {library.HOW_TO_BUILD}", stacklevel=2)
    return False


class AttentionInputs(NamedTuple):
    """The arguments of ``window_attention`` in their order, as reference.py describes them."""

    qkv: Tensor
    kv_cache: Tensor
    positions: Tensor
    cu_window: Tensor
    kv_lengths: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    out_scale: Tensor | None = None


def attention_params(inputs: AttentionInputs, out: Tensor) -> AttentionParams:
    """The C struct over these tensors, which must outlive its use. Raises PluginError on a tensor that does not fit."""
    qkv, kv_cache, positions, cu_window, kv_lengths, slots, cos, sin, out_scale = inputs
    (num_slots, _, kv_heads, max_seq_len, head_dim), tokens, batch = kv_cache.shape, len(qkv), len(slots)
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    table = (max_seq_len, head_dim // 2)

    def pointer(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> int:
        return address(f"window_attention: {name}", tensor, dtype, shape, qkv.device)

    return AttentionParams(
        qkv=pointer("qkv", qkv, qkv.dtype, tokens, (heads + 2 * kv_heads) * head_dim),
        kv_cache=pointer("kv_cache", kv_cache, qkv.dtype, num_slots, 2, kv_heads, max_seq_len, head_dim),
        out=pointer("out", out, _out_dtype(qkv, out_scale), tokens, heads * head_dim),
        positions=pointer("positions", positions, torch.int64, tokens),
        cu_window=pointer("cu_window", cu_window, torch.int64, batch + 1),
        kv_lengths=pointer("kv_lengths", kv_lengths, torch.int64, batch),
        slots=pointer("slots", slots, torch.int64, batch),
        cos=pointer("cos", cos[:max_seq_len], torch.float32, *table),
        sin=pointer("sin", sin[:max_seq_len], torch.float32, *table),
        out_scale=_scale_address("window_attention", out_scale, qkv.device),
        tokens=tokens,
        batch=batch,
        num_slots=num_slots,
        max_seq_len=max_seq_len,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype_code(qkv.dtype),
    )


def _new_attended(*tensors: Any) -> Tensor:
    inputs = AttentionInputs(*tensors)
    qkv, cache = inputs.qkv, inputs.kv_cache
    width = qkv.shape[1] - 2 * cache.shape[2] * cache.shape[4]
    return qkv.new_empty(len(qkv), width, dtype=_out_dtype(qkv, inputs.out_scale))


def _window_attention_cuda(qkv: Tensor, *others: Any) -> Tensor:
    inputs = AttentionInputs(qkv.contiguous(), *others)
    if not is_compiled("window_attention", qkv.dtype, inputs.kv_cache.shape[4]):
        return reference.window_attention(*inputs)
    out = _new_attended(*inputs)
    if len(inputs.slots) == 0:
        return out.zero_()
    launch("window_attention", attention_params(inputs, out), qkv.device)
    return out


Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# The optional arguments of select, in their order; torch leaves out those at the end that are None.
_RANDOM = ("temperature", "seed", "position", "number")
_LIMITS = ("top_k", "top_p")
_OPTIONAL = (*_RANDOM, *_LIMITS, "barred")
_FLOATS = {"entropy_eps": torch.float32, "temperature": torch.float32, "top_p": torch.float64}


def _new_selected(logits: Tensor, mask_id: int, entropy_eps: Tensor, *_: Tensor | None) -> Six:
    rows = len(logits)
    greedy, sampled = (logits.new_empty(rows, dtype=torch.int64) for _ in range(2))
    entropy, confidence, logprob, greedy_logprob = (logits.new_empty(rows, dtype=torch.float32) for _ in range(4))
    return greedy, sampled, entropy, confidence, logprob, greedy_logprob


def _select_cpu(logits: Tensor, mask_id: int, entropy_eps: Tensor, *optional: Tensor | None) -> Six:
    if not 0 <= mask_id < logits.shape[-1]:
        raise PluginError(f"select: mask_id is {mask_id}; allowed: 0 to {logits.shape[-1] - 1}")
    tensors = _by_name(optional)
    random, limits = ([tensors[name] for name in names if name in tensors] for names in (_RANDOM, _LIMITS))
    if len(random) not in (0, len(_RANDOM)):
        raise PluginError("select: temperature, seed, position and number go together; give all or none")
    if len(limits) == 1:
        raise PluginError("select: top_k and top_p go together; give both or none")
    chosen = reference.select(
        logits,
        mask_id,
        entropy_eps,
        reference.SampleKeys(*random) if random else None,
        reference.Limits(*limits) if limits else None,
        tensors.get("barred"),
    )
    # An op's results are tensors of their own.
    sampled = chosen.sampled.clone() if chosen.sampled is chosen.greedy else chosen.sampled
    scores = (chosen.entropy, chosen.confidence, chosen.logprob, chosen.greedy_logprob)
    entropy, confidence, logprob, greedy_logprob = (score.float() for score in scores)
    return chosen.greedy, sampled, entropy, confidence, logprob, greedy_logprob


def _by_name(optional: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    """The optional arguments of select that are there."""
    return {name: tensor for name, tensor in zip(_OPTIONAL, optional, strict=False) if tensor is not None}


def _select_cuda(logits: Tensor, mask_id: int, entropy_eps: Tensor, *optional: Tensor | None) -> Six:
    if not is_compiled("select", logits.dtype):
        return _select_cpu(logits, mask_id, entropy_eps, *optional)
    rows, vocab = logits.shape
    if logits.stride(1) != 1 or logits.stride(0) < vocab:
        logits = logits.contiguous()

    def pointer(name: str, tensor: Tensor) -> int:
        shape = (rows, END_IDS) if name == "barred" else (rows,)
        return address(f"select: {name}", tensor, _FLOATS.get(name, torch.int64), shape, logits.device)

    inputs = {"entropy_eps": entropy_eps, **_by_name(optional)}
    outputs = _new_selected(logits, mask_id, entropy_eps)
    names = ("greedy", "sampled", "entropy", "confidence", "logprob", "greedy_logprob")
    params = SelectParams(
        logits=logits.data_ptr(),
        rows=rows,
        vocab_size=vocab,
        row_stride=logits.stride(0) if rows > 1 else vocab,
        mask_id=mask_id,
        dtype=dtype_code(logits.dtype),
        **{name: pointer(name, tensor) for name, tensor in inputs.items()},
        **{name: tensor.data_ptr() for name, tensor in zip(names, outputs, strict=True)},
    )
    launch("select", params, logits.device)
    return outputs


def _new_normed(x: Tensor, weight: Tensor, eps: float, out_scale: Tensor | None = None) -> Tensor:
    return torch.empty_like(x, dtype=_out_dtype(x, out_scale), memory_format=torch.contiguous_format)


def _new_added(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, out_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _new_normed(x, weight, eps, out_scale), torch.empty_like(x, memory_format=torch.contiguous_format)


def _out_dtype(x: Tensor, out_scale: Tensor | None) -> torch.dtype:
    return x.dtype if out_scale is None else torch.float8_e4m3fn


def _scale_address(op: str, scale: Tensor | None, device: torch.device) -> int | None:
    return None if scale is None else address(f"{op}: out_scale", scale.view(-1), torch.float32, (1,), device)


def _norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, out_scale: Tensor | None, total: Tensor | None
) -> Tensor:
    hidden, device = x.shape[-1], x.device
    x, out = x.contiguous(), _new_normed(x, weight, eps, out_scale)
    params = RmsNormParams(
        x=x.data_ptr(),
        weight=address("rms_norm: weight", weight, x.dtype, (hidden,), device),
        out=out.data_ptr(),
        out_scale=_scale_address("rms_norm", out_scale, device),
        rows=x.numel() // hidden,
        hidden_size=hidden,
        eps=eps,
        dtype=dtype_code(x.dtype),
        out_dtype=dtype_code(out.dtype),
    )
    if residual is not None and total is not None:
        params.residual = address("add_rms_norm: residual", residual, x.dtype, x.shape, device)
        params.sum_out = total.data_ptr()
    launch("rms_norm", params, device)
    return out


def _rms_norm_cuda(x: Tensor, weight: Tensor, eps: float, out_scale: Tensor | None = None) -> Tensor:
    if not is_compiled("rms_norm", x.dtype, x.shape[-1]):
        return reference.rms_norm(x, weight, eps, out_scale)
    return _norm(x, None, weight, eps, out_scale, None)


def _add_rms_norm_cuda(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, out_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if not is_compiled("rms_norm", x.dtype, x.shape[-1]):
        return reference.add_rms_norm(x, residual, weight, eps, out_scale)
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _norm(x, residual.contiguous(), weight, eps, out_scale, total), total


def _new_gated(gate_up: Tensor, out_scale: Tensor | None = None) -> Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2, dtype=_out_dtype(gate_up, out_scale))


def _silu_mul_cuda(gate_up: Tensor, out_scale: Tensor | None = None) -> Tensor:
    if gate_up.shape[-1] % 2 or not is_compiled("silu_mul", gate_up.dtype):
        return reference.silu_mul(gate_up, out_scale)
    gate_up, out = gate_up.contiguous(), _new_gated(gate_up, out_scale)
    params = SiluMulParams(
        gate_up=gate_up.data_ptr(),
        out=out.data_ptr(),
        out_scale=_scale_address("silu_mul", out_scale, gate_up.device),
        rows=gate_up.numel() // gate_up.shape[-1],
        intermediate_size=out.shape[-1],
        dtype=dtype_code(gate_up.dtype),
        out_dtype=dtype_code(out.dtype),
    )
    launch("silu_mul", params, gate_up.device)
    return out


_library: Any = torch.library.Library("d3llm", "FRAGMENT")  # type: ignore[no-untyped-call]
_Road = Callable[..., Any]


def _op(name: str, cpu: _Road, cuda: _Road, meta: _Road, schema: str = "", changes: tuple[str, ...] = ()) -> Any:
    """Define an op, and return what to call. Its schema is by default that of ``cpu``, which writes to ``changes``."""
    _library.define(name + (schema or torch.library.infer_schema(cpu, mutates_args=changes)))
    for key, road in (("CPU", cpu), ("CUDA", cuda), ("Meta", meta)):
        _library.impl(name, road, key)
    return getattr(torch.ops.d3llm, name).default


# Call these like the functions of the same name in reference.py; select takes the fields of
# SampleKeys and of Limits, then ``barred``.
window_attention: Callable[..., Tensor] = _op(
    "window_attention", reference.window_attention, _window_attention_cuda, _new_attended, changes=("kv_cache",)
)
_SELECT = (
    "(Tensor logits, int mask_id, Tensor entropy_eps, Tensor? temperature=None, Tensor? seed=None, "
    "Tensor? position=None, Tensor? number=None, Tensor? top_k=None, Tensor? top_p=None, Tensor? barred=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
select = _op("select", _select_cpu, _select_cuda, _new_selected, _SELECT)
rms_norm: Callable[..., Tensor] = _op("rms_norm", reference.rms_norm, _rms_norm_cuda, _new_normed)
add_rms_norm: Callable[..., tuple[Tensor, Tensor]] = _op(
    "add_rms_norm", reference.add_rms_norm, _add_rms_norm_cuda, _new_added
)
silu_mul: Callable[..., Tensor] = _op("silu_mul", reference.silu_mul, _silu_mul_cuda, _new_gated)
