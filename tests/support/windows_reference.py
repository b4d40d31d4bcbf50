"""MultiBlock with windows at both ends, written down again in float64 from the specification alone (B.3 to B.5, B.8a).

One request, prompts without masks, no early stop. The network is dense torch code that keeps K/V rows of all positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from d3llm_trt import DecodingConfig
from d3llm_trt.model.config import ModelConfig


class Network:
    """A float64 network over one canvas; rows of K/V stay as the last pass over their positions left them."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], length: int) -> None:
        self.config = config
        self.weights = {name: tensor.double() for name, tensor in weights.items()}
        shape = (config.num_layers, 2, length, config.num_kv_heads, config.head_dim)
        self.kept = torch.full(shape, math.nan, dtype=torch.float64)
        half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self.angles = torch.outer(torch.arange(length, dtype=torch.float64), config.rope_theta**-half)

    def logits(self, ids: Tensor, start: int, end: int) -> Tensor:
        """Logits ``[end - start, vocab]`` of a window of the canvas ``ids[length]``."""
        x = self.weights["embedding.weight"][ids[start:end]]
        for layer in range(self.config.num_layers):
            name = f"layers.{layer}"
            x = x + self._attention(layer, self._norm(f"{name}.attention_norm", x), start, end)
            gate, up = self._linear(f"{name}.mlp.gate_up", self._norm(f"{name}.mlp_norm", x)).chunk(2, -1)
            x = x + self._linear(f"{name}.mlp.down", torch.nn.functional.silu(gate) * up)
        return self._linear("lm_head", self._norm("final_norm", x))

    def _attention(self, layer: int, x: Tensor, start: int, end: int) -> Tensor:
        config, name = self.config, f"layers.{layer}.attention"
        heads, kv_heads = config.num_heads, config.num_kv_heads
        packed = self._linear(f"{name}.qkv", x).view(end - start, heads + 2 * kv_heads, config.head_dim)
        q, k, v = packed.split([heads, kv_heads, kv_heads], 1)
        self.kept[layer, 0, start:end], self.kept[layer, 1, start:end] = self._turned(k, start, end), v
        keys, values = (kept.repeat_interleave(heads // kv_heads, 1) for kept in self.kept[layer])
        scores = torch.einsum("qhd,khd->hqk", self._turned(q, start, end), keys) / math.sqrt(config.head_dim)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)
        return self._linear(f"{name}.output", mixed.flatten(1))

    def _turned(self, x: Tensor, start: int, end: int) -> Tensor:
        cos, sin = (turn(self.angles[start:end])[:, None] for turn in (torch.cos, torch.sin))
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return (
            x
            * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
            * self.weights[f"{name}.weight"]
        )

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))


@dataclass
class Block:
    """Positions [start, end) of a canvas, and what the decoder knows of them."""

    start: int
    end: int
    active: bool = False
    done_pass: int | None = None
    cached: bool = False


@dataclass
class Reference:
    """Decodes one prompt; ``windows`` are the windows of all passes as ``(start, end)``."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    decoding: DecodingConfig

    def decode(self, prompt: Sequence[int], max_tokens: int) -> tuple[list[int], list[tuple[int, int]]]:
        """The final canvas, and the window of every pass."""
        length, size = len(prompt) + max_tokens, self.decoding.block_size
        self.ids = torch.tensor([*prompt, *[self.config.mask_token_id] * max_tokens])
        self.length, self.cached_length, self.passes = length, 0, 0
        edges = [*range(len(prompt), length, size), length]
        self.coming = [Block(start, end) for start, end in itertools.pairwise(edges)]
        self.blocks = [Block(0, len(prompt), active=True, done_pass=0), self.coming.pop(0)]
        self.blocks[1].active = self.decoding.decoded_token_threshold <= 1.0
        network, windows = Network(self.config, self.weights, length), []
        while self._masks(0, length):
            self.passes += 1
            self._open()
            limit = max(block.end for block in self.blocks[1:] if block.active or self._masked(block))
            start, end = self._window()
            windows.append((start, end))
            self._accept(network.logits(self.ids, start, end), start, limit)
        return self.ids.tolist(), windows

    def _masks(self, start: int, end: int) -> int:
        return int((self.ids[start:end] == self.config.mask_token_id).sum())

    def _masked(self, block: Block) -> int:
        return self._masks(block.start, block.end)

    def _progress(self, block: Block) -> float:
        return 1 - self._masked(block) / (block.end - block.start)

    def _open(self) -> None:
        enough = self.decoding.decoded_token_threshold
        for before, block in zip(self.blocks, self.blocks[1:], strict=False):
            block.active = block.active or self._progress(before) >= enough
        newest = self.blocks[-1]
        ready = self._progress(newest) >= self.decoding.block_add_threshold or not self._masked(newest)
        if self.coming and ready:
            self.blocks.append(self.coming.pop(0))
            self.blocks[-1].active = self._progress(newest) >= enough

    def _grown(self) -> int:
        """The end of what is old enough to be cached now, or 0."""
        grown = 0
        if self.decoding.cache_delay_iter is None:
            return 0
        for block in self.blocks:
            if block.end <= self.cached_length:
                continue
            if self._masked(block):
                break
            block.done_pass = self.passes if block.done_pass is None else block.done_pass
            old = self.passes - block.done_pass >= self.decoding.cache_delay_iter
            if old and not block.cached:
                block.cached, grown = True, block.end
            elif not old and self.config.family == "llada":
                break
        return grown

    def _window(self) -> tuple[int, int]:
        decoding, length = self.decoding, self.cached_length
        grown = self._grown()
        settling = any(not self._masked(b) and b.done_pass is not None and not b.cached for b in self.blocks)
        settling = settling and decoding.cache_delay_iter is not None and decoding.full_settling
        refresh = decoding.refresh_interval is not None and self.passes % decoding.refresh_interval == 0
        full = self.passes == 1 or (grown == 0 and (refresh or settling))
        self.cached_length = max(length, grown)
        if full:
            return 0, self.length
        earlier = self.config.family == "dream" and length > 0 and not decoding.published_shift
        ahead = decoding.window_ahead
        end = self.length if ahead is None else self.blocks[-1].end + ahead * decoding.block_size
        return length - earlier, min(end, self.length)

    def _accept(self, logits: Tensor, start: int, limit: int) -> None:
        masked = (self.ids == self.config.mask_token_id).nonzero()[:, 0].tolist()
        candidates = [at for at in masked if start <= at < limit]
        rows = [max(at - int(self.config.shifted_logits), start) - start for at in candidates]
        p = logits[rows].softmax(-1)
        entropy = (-(p * (p + 1e-12).log()).sum(-1)).tolist()
        logits[:, self.config.mask_token_id] = -math.inf
        tokens = dict(zip(candidates, logits[rows].argmax(-1).tolist(), strict=True))
        by_entropy = dict(zip(candidates, entropy, strict=True))
        threshold = self.decoding.threshold_for(self.config.family)
        assert threshold is not None
        if self.config.family == "dream":
            accepted = {at for at in candidates if by_entropy[at] < threshold}
        else:
            accepted = {at for at in candidates if by_entropy[at] <= threshold}
            accepted.add(min(candidates, key=by_entropy.__getitem__))
        first = next((block for block in self.blocks[1:] if block.active and self._masked(block)), None)
        inside = [at for at in candidates if first is not None and first.start <= at < first.end]
        if inside and not accepted & set(inside):
            accepted.add(min(inside, key=by_entropy.__getitem__))
        for at in accepted:
            self.ids[at] = tokens[at]
