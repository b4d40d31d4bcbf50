"""Rotary embedding, cache update and attention of the new API, made of elementary layers once they are complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.support.tensorrt85.types import DataType

HIDDEN = -1e30  # a score that softmax makes zero


class Composition:
    """A layer with one output, made when that is asked for. Its parts are called after it.

    What goes in and what comes out is copied: TensorRT 8.5 fuses all that lies between, and nothing across. Whole
    networks that it fused had wrong results.
    """

    def __init__(self, network: Any) -> None:
        self.name = ""
        self.network = network
        self._output: Any = None

    def get_output(self, number: int) -> Any:
        """The only output."""
        assert number == 0
        if self._output is None:
            self._output = self.network.copied(f"{self.name}.out", self.compose())
        return self._output

    def compose(self) -> Any:
        """The output, of new layers."""
        raise NotImplementedError

    def entering(self, part: str, x: Any) -> Any:
        """An input, copied."""
        return self.network.copied(f"{self.name}.{part}.in", x)

    def named(self, part: str, layer: Any) -> Any:
        """The only output of a part."""
        layer.name = f"{self.name}.{part}"
        return layer.get_output(0)

    def binary(self, part: str, x: Any, operation: str, y: Any) -> Any:
        """An elementwise operation by its name."""
        operations = self.network.real_module.ElementWiseOperation
        return self.named(part, self.network.add_elementwise(x, y, getattr(operations, operation)))

    def reshaped(self, part: str, x: Any, shape: Sequence[int]) -> Any:
        """0 keeps an extent, -1 takes the rest."""
        layer = self.network.add_shuffle(x)
        layer.reshape_dims = tuple(shape)
        return self.named(part, layer)

    def integers(self, part: str, values: Any, shape: Sequence[int]) -> Any:
        """An int32 constant."""
        return self.network.constant(f"{self.name}.{part}", np.asarray(values, np.int32).reshape(shape))


class RotaryEmbedding(Composition):
    """Half-split RoPE of ``x[B, heads, S, dim]``: tables are ``[positions, dim / 2]``, input 3 ``positions[B, S]``."""

    def __init__(self, network: Any, x: Any, cos: Any, sin: Any, dim: int) -> None:
        super().__init__(network)
        self._x, self._tables, self._dim = x, (cos, sin), dim
        self._positions: Any = None

    def set_input(self, number: int, tensor: Any) -> None:
        """The positions."""
        assert number == 3
        self._positions = tensor

    def compose(self) -> Any:
        """See :class:`Composition`."""
        half = self._dim // 2
        halves = self.reshaped("halves", self.entering("x", self._x), (0, 0, 0, 2, half))
        exchanged = self.named("exchanged", self.network.add_gather(halves, self.integers("order", [1, 0], (2,)), 3))
        # TensorRT 8.5 joins the halves wrongly where they come from one tensor, so there is no concatenation.
        signs = np.array([-1.0, 1.0], np.float32).reshape(1, 1, 1, 2, 1)
        cos, sin = (
            self.reshaped(
                f"{kind}.rows",
                self.named(kind, self.network.add_gather(table, self._positions, 0)),
                (0, 1, -1, 1, half),
            )
            for kind, table in zip(("cos", "sin"), self._tables, strict=True)
        )
        signed = self.binary("signed", sin, "PROD", self.network.constant(f"{self.name}.signs", signs))
        turned = self.binary("turned", exchanged, "PROD", signed)
        both = self.binary("both", self.binary("kept", halves, "PROD", cos), "SUM", turned)
        return self.reshaped("rotated", both, (0, 0, 0, self._dim))


class CacheUpdate(Composition):
    """``cache[B, heads, P, d]`` with the rows ``[starts[b], starts[b] + S)`` from ``update[B, heads, S, d]``."""

    def __init__(self, network: Any, cache: Any, update: Any, starts: Any) -> None:
        super().__init__(network)
        self._cache, self._update, self._starts = cache, update, starts

    def compose(self) -> Any:
        """See :class:`Composition`."""
        update, positions = self.entering("update", self._update), self._cache.shape[2]
        starts = self.reshaped("starts", self._starts, (0, 1, 1, 1))
        at = self.integers("positions", range(positions), (1, 1, positions, 1))
        row = self.binary("row", at, "SUB", starts)
        rows = self._rows(update)
        behind = self.binary("behind", row, "GREATER", self.integers("before", -1, (1, 1, 1, 1)))
        inside = self.binary("inside", behind, "AND", self.binary("ahead", row, "LESS", rows))
        last = self.binary("last", rows, "SUB", self.integers("one", 1, (1, 1, 1, 1)))
        known = self.binary("known", row, "MAX", self.integers("zero", 0, (1, 1, 1, 1)))
        index = self.reshaped("index", self.binary("clamped", known, "MIN", last), (0, -1))
        spread = self.named("spread", self.network.add_gather(update, index, 2, 1))
        return self.named("updated", self.network.add_select(inside, spread, self._cache))

    def _rows(self, update: Any) -> Any:
        """S as ``[1, 1, 1, 1]``."""
        shape = self.named("shape", self.network.add_shape(update))
        shape.dtype = DataType.INT32
        picked = self.named("rows", self.network.add_gather(shape, self.integers("axis", 2, (1,)), 0))
        return self.reshaped("rows.all", picked, (1, 1, 1, 1))


class Attention(Composition):
    """Softmax of ``q k`` times ``v``, float32 inside; either ``key_value_lengths[B]`` or a ``mask[B, 1, 1, P]`` is set.

    Whatever the caches hold behind a length has no effect, not even NaN.
    """

    def __init__(self, network: Any, q: Any, k: Any, v: Any) -> None:
        super().__init__(network)
        self._q, self._k, self._v = q, k, v
        self.decomposable = False
        self.key_value_lengths: Any = None
        self.mask: Any = None

    def compose(self) -> Any:
        """See :class:`Composition`."""
        network, trt = self.network, self.network.real_module
        seen, seen_rows = self._seen()
        _, kv_heads, _, dim = self._k.shape
        none, transposed = trt.MatrixOperation.NONE, trt.MatrixOperation.TRANSPOSE
        zero = network.constant(f"{self.name}.zero", np.zeros((1, 1, 1, 1), _numpy(self._v.dtype)))
        keys, values = (
            self.named(part, network.add_select(seen_rows, cache, zero))
            for part, cache in (("keys", self._k), ("values", self._v))
        )
        # The queries that share a key head stand one below the other.
        grouped = self.reshaped("grouped", self._q, (0, kv_heads, -1, dim))
        scores = self.named("scores", network.add_matrix_multiply(grouped, none, keys, transposed))
        full = self.named("scores.float32", network.add_cast(scores, DataType.FLOAT))
        hidden = network.constant(f"{self.name}.hidden", np.full((1, 1, 1, 1), HIDDEN, np.float32))
        masked = self.named("masked", network.add_select(seen, full, hidden))
        shares = self.named("softmax", network.add_softmax(masked, 3))
        shares = self.named("shares", network.add_cast(shares, self._v.dtype))
        attended = self.named("attended", network.add_matrix_multiply(shares, none, values, none))
        return self._ungrouped(attended)

    def _seen(self) -> tuple[Any, Any]:
        """Which keys may be seen, as ``[B, 1, 1, P]`` and ``[B, 1, P, 1]``."""
        positions = self._k.shape[2]
        if self.mask is not None:
            return self.mask, self.reshaped("seen.rows", self.mask, (0, 1, -1, 1))
        found = []
        for part, shape in (("seen", (1, 1, 1, positions)), ("seen.rows", (1, 1, positions, 1))):
            at = self.integers(f"{part}.at", range(positions), shape)
            lengths = self.reshaped(f"{part}.lengths", self.key_value_lengths, (0, 1, 1, 1))
            found.append(self.binary(part, at, "LESS", lengths))
        return found[0], found[1]

    def _ungrouped(self, attended: Any) -> Any:
        """In the shape of the queries."""
        shape = self.named("shape", self.network.add_shape(self._q))
        layer = self.network.add_shuffle(attended)
        layer.set_input(1, shape)
        return self.named("ungrouped", layer)


def _numpy(dtype: DataType) -> type:
    return np.float16 if dtype is DataType.HALF else np.float32
