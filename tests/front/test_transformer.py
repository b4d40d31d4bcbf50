"""The forward pass: which rows go how far, and that nobody else's result depends on it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from d3llm_trt.model.config import FAMILIES, Family, ModelConfig
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.model.transformer import forward
from examples.tiny_d3llm.network import initial_weights, tiny_config
from examples.tiny_d3llm.tasks import WORD_PROBLEMS

LENGTH = 30


class Counting(TorchOps):
    """Notes how many rows each linear layer takes."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.cache = torch.zeros(config.num_layers, 1, 2, config.num_kv_heads, LENGTH, config.head_dim)
        super().__init__(config, weights, self.cache, Windows.whole(LENGTH), rotary_tables(config, LENGTH))
        self.rows: dict[str, int] = {}

    def linear(self, name: str, x: Tensor) -> Tensor:
        self.rows[name] = len(x)
        return super().linear(name, x)


@pytest.mark.parametrize("rows", [[3, 17, 4, 17], [29], []], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_after_the_last_attention_only_logit_rows_go_on(family: Family, rows: list[int]) -> None:
    config = tiny_config(WORD_PROBLEMS, family)
    weights, ids = initial_weights(config, 0), torch.arange(LENGTH) * 7 % 500
    every, some = Counting(config, weights), Counting(config, weights)
    wanted = forward(config, every, ids, torch.arange(LENGTH))
    logits = forward(config, some, ids, torch.tensor(rows, dtype=torch.int64))
    assert logits.shape == (len(rows), config.vocab_size)
    assert torch.allclose(logits, wanted[rows], atol=1e-5)
    assert torch.equal(some.cache, every.cache) and every.cache.any()
    assert set(every.rows.values()) == {LENGTH}
    few = {"layers.3.attention.output", "layers.3.mlp.gate_up", "layers.3.mlp.down", "lm_head"}
    assert some.rows == {name: len(rows) if name in few else LENGTH for name in every.rows}
