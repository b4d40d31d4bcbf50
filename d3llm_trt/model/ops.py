"""The Ops protocol: the handful of operations the forward pass is written in.

One class runs them (torch), another lowers them into a TensorRT network. Tensors are opaque to the
network: only an Ops class looks inside.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

Tensor = TypeVar("Tensor")


class Ops(Protocol[Tensor]):
    """Operations on packed rows. ``name`` is the place in the model, e.g. ``layers.3.attention.qkv``.

    Rows are tokens of all windows of a batch, one after the other: ``[T, ...]``. ``feeds`` names the one linear layer
    that takes a result; where that runs in FP8, an Ops class may give it FP8.
    """

    def embedding(self, name: str, ids: Tensor) -> Tensor:
        """Rows of the table ``{name}.weight`` for ``ids[T]``: ``[T, hidden]``."""

    def linear(self, name: str, x: Tensor) -> Tensor:
        """``x @ {name}.weight.T``, plus ``{name}.bias`` where the model has one."""

    def rms_norm(self, name: str, x: Tensor, feeds: str) -> Tensor:
        """RMSNorm with float32 statistics, cast back before the multiplication by ``{name}.weight``."""

    def add_linear_norm(self, residual: Tensor, linear: str, x: Tensor, norm: str, feeds: str) -> tuple[Tensor, Tensor]:
        """The sum of ``residual``, which may be overwritten, and ``linear(linear, x)``; and ``norm`` of that sum."""

    def attention(self, name: str, layer: int, qkv: Tensor, feeds: str) -> Tensor:
        """Half-split RoPE on q and k, K/V of the window written to the cache, attention without a causal mask.

        ``qkv[T, (heads + 2 kv_heads) * head_dim]`` -> ``[T, heads * head_dim]``. Each window attends to the
        cache rows ``[0, kv_length)`` of its slot.
        """

    def gated_mlp(self, name: str, gate_up: Tensor, feeds: str) -> Tensor:
        """``silu(gate) * up`` for the fused rows ``[T, 2 * intermediate]``: ``[T, intermediate]``."""

    def gather_rows(self, name: str, x: Tensor, rows: Tensor) -> Tensor:
        """``x[rows]``."""
