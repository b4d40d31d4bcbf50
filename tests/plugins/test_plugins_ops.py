"""The torch ops of the kernels without a GPU: references against float64, meta functions, and refused arguments."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from d3llm_trt.build.checkpoint import open_checkpoint
from d3llm_trt.errors import PluginError
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.plugins import c_structs, library, ops, reference
from tests.support.tiny_models import CHECKPOINTS

HEADS, KV_HEADS, DIM, SLOTS, MAX_SEQ = 4, 2, 32, 4, 24


def attention_inputs(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Windows [3, 10) of slot 2, none of slot 0, and [0, 5) of slot 1, then two rows that belong to nobody."""
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(MAX_SEQ, DIM // 2, generator=generator) * 6
    return {
        "qkv": torch.randn(14, (HEADS + 2 * KV_HEADS) * DIM, generator=generator).to(dtype),
        "kv_cache": torch.randn(SLOTS, 2, KV_HEADS, MAX_SEQ, DIM, generator=generator).to(dtype),
        "positions": torch.tensor([*range(3, 10), *range(5), 0, 0]),
        "cu_window": torch.tensor([0, 7, 7, 12]),
        "kv_lengths": torch.tensor([12, 4, 5]),
        "slots": torch.tensor([2, 0, 1]),
        "cos": angles.cos(),
        "sin": angles.sin(),
    }


def attended_by_hand(given: dict[str, Tensor]) -> Tensor:
    """One row and one head at a time, with complex numbers for RoPE; changes the cache."""
    turns = torch.complex(given["cos"].double(), given["sin"].double())[given["positions"]][:, None]
    heads = given["qkv"].double().view(-1, HEADS + 2 * KV_HEADS, DIM)
    turned = torch.complex(heads[..., : DIM // 2], heads[..., DIM // 2 :]) * turns
    turned, cache = torch.cat((turned.real, turned.imag), -1), given["kv_cache"]
    out = torch.zeros(len(heads), HEADS, DIM, dtype=torch.float64)
    edges = given["cu_window"].tolist()
    for start, end, slot, length in zip(edges, edges[1:], given["slots"], given["kv_lengths"], strict=False):
        for row in range(start, end):
            cache[slot, 0, :, given["positions"][row]] = turned[row, HEADS : HEADS + KV_HEADS].to(cache.dtype)
            cache[slot, 1, :, given["positions"][row]] = heads[row, HEADS + KV_HEADS :].to(cache.dtype)
        for row in range(start, end):
            for head in range(HEADS):
                keys, values = cache[slot, :, head // (HEADS // KV_HEADS), :length].double()
                out[row, head] = (keys @ turned[row, head] / DIM**0.5).softmax(0) @ values
    return out.flatten(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_is_what_its_words_say(dtype: torch.dtype) -> None:
    given, by_hand = attention_inputs(dtype), attention_inputs(dtype)
    before = given["kv_cache"].clone()
    out = ops.window_attention(*given.values())
    assert out.dtype == dtype
    assert torch.allclose(out.double(), attended_by_hand(by_hand), rtol=0, atol=1e-5)
    assert torch.allclose(given["kv_cache"], by_hand["kv_cache"], atol=1e-6)
    assert torch.equal(given["kv_cache"][3], before[3]) and torch.equal(given["kv_cache"][0], before[0])
    assert not out[12:].any()


def test_norms_and_gates_are_what_their_words_say() -> None:
    x, y, weight = (torch.randn(5, 48) for _ in range(3))
    normed, total = ops.add_rms_norm(x, y, weight[0], 1e-5)
    wanted = (x + y).double()
    assert torch.equal(total, x + y)
    wanted = wanted / (wanted.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight[0]
    assert torch.allclose(normed.double(), wanted, atol=1e-5)
    assert torch.equal(ops.rms_norm(total, weight[0], 1e-5), normed)
    gate, up = x.double().chunk(2, -1)
    assert torch.allclose(ops.silu_mul(x).double(), gate / (1 + (-gate).exp()) * up, atol=1e-5)


def test_fp8_results_are_in_units_of_the_scale_and_saturate() -> None:
    x, scale = torch.randn(5, 48, dtype=torch.bfloat16), torch.tensor(1e-3)
    out = ops.silu_mul(x, scale)
    assert out.dtype == torch.float8_e4m3fn
    wanted = (ops.silu_mul(x).float() / scale).clamp(-448, 448)
    assert torch.allclose(out.float(), wanted, rtol=2**-4, atol=2**-10)
    assert float(out.float().abs().max()) == 448


def select_inputs() -> tuple[Tensor, int, Tensor]:
    return torch.randn(6, 40) * 3, 7, torch.full((6,), 1e-12)


def sampling() -> tuple[Tensor, ...]:
    return torch.full((6,), 0.7), torch.arange(6), torch.arange(6) * 3, torch.full((6,), 2)


def limits() -> tuple[Tensor, Tensor]:
    return torch.arange(6), torch.linspace(0.2, 1, 6, dtype=torch.float64)


CALLS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "window_attention": lambda: (ops.window_attention, tuple(attention_inputs().values())),
    "select": lambda: (ops.select, select_inputs()),
    "select sampling": lambda: (ops.select, (*select_inputs(), *sampling())),
    "select limited": lambda: (ops.select, (*select_inputs(), *sampling(), *limits())),
    "select barred": lambda: (ops.select, (*select_inputs(), *[None] * 6, torch.arange(48).view(6, 8) % 9 - 1)),
    "rms_norm": lambda: (ops.rms_norm, (torch.randn(3, 16), torch.ones(16), 1e-5)),
    "rms_norm fp8": lambda: (ops.rms_norm, (torch.randn(3, 16), torch.ones(16), 1e-5, torch.tensor(0.1))),
    "add_rms_norm": lambda: (ops.add_rms_norm, (torch.randn(3, 16), torch.randn(3, 16), torch.ones(16), 1e-5)),
    "silu_mul": lambda: (ops.silu_mul, (torch.randn(3, 16),)),
    "silu_mul fp8": lambda: (ops.silu_mul, (torch.randn(3, 16), torch.tensor(0.1))),
}


@pytest.mark.parametrize("name", CALLS)
def test_torch_finds_the_ops_sound(name: str) -> None:
    opcheck(*CALLS[name]())


def test_the_ops_are_compiled_into_one_graph() -> None:
    def block(qkv: Tensor, cache: Tensor, weight: Tensor, *layout: Tensor) -> tuple[Tensor, Tensor]:
        attended = ops.window_attention(qkv, cache, *layout)
        normed, total = ops.add_rms_norm(attended, attended, weight, 1e-5)
        return ops.silu_mul(normed), total

    qkv, cache, *layout = attention_inputs().values()
    weight, other_cache = torch.rand(HEADS * DIM), cache.clone()
    wanted = block(qkv, cache, weight, *layout)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(qkv, other_cache, weight, *layout), wanted, strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(other_cache, cache)


def test_a_sum_comes_with_its_norm() -> None:
    checkpoint = open_checkpoint(CHECKPOINTS["llada"])
    config, weights = checkpoint.config, dict(checkpoint.packed_tensors())
    weights = {name: tensor.float() + 0.1 * torch.rand(tensor.shape) for name, tensor in weights.items()}
    network = TorchOps(config, weights, torch.empty(0), Windows.whole(3), rotary_tables(config, 3))
    x, attended = torch.randn(3, config.hidden_size), torch.randn(3, config.num_heads * config.head_dim)
    output, norm, feeds = "layers.0.attention.output", "layers.0.mlp_norm", "layers.0.mlp.gate_up"
    y = network.linear(output, attended)
    total, normed = network.add_linear_norm(x, output, attended, norm, feeds)
    assert torch.equal(total, x + y)
    for name, rows in ((norm, total), (norm, y), ("final_norm", total)):
        wanted = reference.rms_norm(rows, weights[f"{name}.weight"], config.rms_norm_eps)
        assert torch.equal(network.rms_norm(name, rows, feeds), wanted)
    assert torch.equal(normed, network.rms_norm(norm, total, feeds))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "positions",
            lambda x: x.int(),
            r"positions is contiguous torch.int32 \[14\].*contiguous torch.int64",
        ),
        ("kv_cache", lambda x: x.transpose(3, 4).contiguous().transpose(3, 4), "kv_cache is strided"),
        ("kv_lengths", lambda x: x[:2], r"kv_lengths is .* \[2\] .*\[3\]"),
        ("cos", lambda x: x[:5], r"cos is .*\[5, 16\].*\[24, 16\]"),
        ("sin", lambda x: x.double(), "sin is .*float64.*float32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    given = attention_inputs(torch.bfloat16)
    given[name] = change(given[name])
    with pytest.raises(PluginError, match=message):
        ops.attention_params(ops.AttentionInputs(**given), torch.empty(14, HEADS * DIM, dtype=torch.bfloat16))


def test_without_kernels_one_warning_says_how_to_build_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    ops._have_kernels.cache_clear()
    with pytest.warns(UserWarning, match="make plugins") as warned:
        assert not any(ops.is_compiled("silu_mul", torch.bfloat16) for _ in range(3))
    assert len(warned) == 1
    ops._have_kernels.cache_clear()


@pytest.fixture(scope="session")
def compiled() -> library.Library:
    if not library.available():
        pytest.skip("needs the compiled kernels: make plugins")
    return library.load()


SOMEWHERE = 4096  # an aligned address that no check reads
KINDS: dict[str, tuple[str, type[c_structs.Params]]] = {
    "attention": ("window_attention", c_structs.AttentionParams),
    "select": ("select", c_structs.SelectParams),
    "rms_norm": ("rms_norm", c_structs.RmsNormParams),
    "silu_mul": ("silu_mul", c_structs.SiluMulParams),
}
SAMPLING = ("temperature", "seed", "position", "number", "top_k", "top_p", "barred")
OPTIONAL = (*SAMPLING, "residual", "sum_out", "out_scale")
SIZES = {
    "attention": {"tokens": 3, "batch": 1, "num_slots": 1, "max_seq_len": 8, "num_heads": 4, "num_kv_heads": 2},
    "select": {"rows": 2, "vocab_size": 10, "row_stride": 10, "mask_id": 3},
    "rms_norm": {"rows": 2, "hidden_size": 64, "eps": 1e-5, "out_dtype": 2},
    "silu_mul": {"rows": 2, "intermediate_size": 64, "out_dtype": 2},
}
SIZES["attention"]["head_dim"] = 64
AMOUNTS = {"attention": "tokens"}  # what there is nothing to do without; else "rows"


def pointers(kind: str) -> list[str]:
    fields = KINDS[kind][1]._fields_
    return [name for name, field, *_ in fields if field is ctypes.c_void_p and name not in OPTIONAL]


def sound(kind: str, **changes: Any) -> c_structs.Params:
    """Parameters that pass all checks, but for the changes."""
    return KINDS[kind][1](**{**dict.fromkeys(pointers(kind), SOMEWHERE), **SIZES[kind], "dtype": 2, **changes})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((kind, {"struct_size": 8}, "struct_size is 8; this library's is") for kind in KINDS),
    *((kind, {name: None}, f"{name} is NULL") for kind in KINDS for name in pointers(kind)),
    ("attention", {"head_dim": 96}, "head_dim is 96; allowed: 32, 64, 128"),
    ("attention", {"num_heads": 3}, "num_heads is 3 and num_kv_heads 2"),
    ("attention", {"dtype": 0}, "dtype is 0; allowed: 1"),
    ("attention", {"tokens": -1}, "tokens is -1"),
    ("attention", {"out": SOMEWHERE + 8}, "out is not aligned to 16 bytes"),
    ("attention", {"out_scale": SOMEWHERE + 2}, "out_scale is not aligned to 4 bytes"),
    ("select", {"rows": -1}, "rows is -1; allowed: 0 to"),
    ("select", {"vocab_size": 1}, "vocab_size is 1; allowed: 2 to"),
    ("select", {"row_stride": 9}, "row_stride is 9; allowed: 10 to"),
    ("select", {"mask_id": 10}, "mask_id is 10; allowed: 0 to 9"),
    ("select", {"mask_id": -1}, "mask_id is -1; allowed: 0 to 9"),
    ("select", {"dtype": 3}, "dtype is 3; allowed: 0"),
    ("select", {"logits": SOMEWHERE + 1}, "logits is not aligned to 2 bytes"),
    ("select", {"temperature": SOMEWHERE}, "seed is NULL"),
    ("select", {"top_p": SOMEWHERE}, "top_k is NULL"),
    ("select", {"barred": SOMEWHERE + 4}, "barred is not aligned to 8 bytes"),
    ("select", {"vocab_size": (1 << 22) + 1}, "vocab_size is 4194305; allowed: 2 to 4194304"),
    ("rms_norm", {"hidden_size": 16385}, "hidden_size is 16385; allowed: 1 to 16384"),
    ("rms_norm", {"eps": -1.0}, "eps is -1; allowed: 0 or more"),
    ("rms_norm", {"eps": float("nan")}, "eps is -?nan; allowed: 0 or more"),
    ("rms_norm", {"dtype": 0}, "dtype is 0; allowed: 1"),
    ("rms_norm", {"out_dtype": 1}, "out_dtype is 1; allowed: dtype, 2, or 3"),
    ("rms_norm", {"out_dtype": 3}, "out_scale is NULL"),
    ("rms_norm", {"out_scale": SOMEWHERE}, "out_scale is set; only out_dtype 3"),
    ("rms_norm", {"residual": SOMEWHERE + 1}, "residual is not aligned to 2 bytes"),
    ("silu_mul", {"intermediate_size": 0}, "intermediate_size is 0; allowed: 1 to"),
    ("silu_mul", {"out_dtype": 3}, "out_scale is NULL"),
]


@pytest.mark.parametrize(("kind", "change", "message"), REFUSED)
def test_the_library_names_what_it_refuses(
    compiled: library.Library, kind: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PluginError, match=f"{kind}: {message}"):
        compiled.launch(KINDS[kind][0], sound(kind, **change), 0)


def test_the_library_refuses_no_params(compiled: library.Library) -> None:
    for name in ("window_attention", "write_kv", "attend", "select", "rms_norm", "silu_mul"):
        assert compiled.launchers[name](None, None) == c_structs.INVALID_ARGUMENT
        assert compiled.last_error().endswith(b"params is NULL")


def test_nothing_to_do_is_success_without_a_gpu(compiled: library.Library) -> None:
    for kind, (launcher, _) in KINDS.items():
        compiled.launch(launcher, sound(kind, **{AMOUNTS.get(kind, "rows"): 0}), 0)
