"""ModelConfig: the hyper-parameters of a d3LLM network, the same words for both families."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from d3llm_trt.errors import ConfigError

Family = Literal["llada", "dream"]
FAMILIES: tuple[str, ...] = get_args(Family)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and special ids of one network (spec A.1, A.2).

    ``vocab_size`` is the number of rows of the embedding table and of the LM head, so of the logits. Each of
    ``end_token_ids`` ends an answer; ``eos_token_id`` is the first of them, whether it was given among them or not.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    end_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        ends = dict.fromkeys((self.eos_token_id, *self.end_token_ids))
        object.__setattr__(self, "end_token_ids", tuple(ends))

    @property
    def qkv_bias(self) -> bool:
        """Dream's q, k and v projections carry a bias; LLaDA has none anywhere."""
        return self.family == "dream"

    @property
    def shifted_logits(self) -> bool:
        """Whether raw head row i scores position i+1 (Dream, spec A.4)."""
        return self.family == "dream"

    @property
    def qkv_size(self) -> int:
        """Rows of the fused QKV weight: query heads, then key heads, then value heads."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Values of all weights."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    @property
    def kv_values_per_token(self) -> int:
        """Values that one position takes in the KV cache."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every packed weight, in the order the forward pass uses them."""
        hidden, heads = self.hidden_size, self.num_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, hidden)}
        for layer in range(self.num_layers):
            name = f"layers.{layer}"
            shapes[f"{name}.attention_norm.weight"] = (hidden,)
            shapes[f"{name}.attention.qkv.weight"] = (self.qkv_size, hidden)
            if self.qkv_bias:
                shapes[f"{name}.attention.qkv.bias"] = (self.qkv_size,)
            shapes[f"{name}.attention.output.weight"] = (hidden, heads)
            shapes[f"{name}.mlp_norm.weight"] = (hidden,)
            shapes[f"{name}.mlp.gate_up.weight"] = (2 * self.intermediate_size, hidden)
            shapes[f"{name}.mlp.down.weight"] = (hidden, self.intermediate_size)
        shapes["final_norm.weight"] = (hidden,)
        shapes["lm_head.weight"] = (self.vocab_size, hidden)
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored under ``pretrained_config`` in an engine directory.

        ``end_token_ids`` is there only if it names more than the EOS id, so most engines have no such key.
        """
        values = asdict(self)
        ends = values.pop("end_token_ids")
        return values if len(ends) == 1 else {**values, "end_token_ids": list(ends)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The config that :meth:`to_dict` stored. Raises ConfigError on a missing or unknown key."""
        known = {field.name for field in fields(cls)}
        if wrong := known.symmetric_difference({"end_token_ids": (), **values}):
            raise ConfigError(f"model config: missing or unknown keys {sorted(wrong)}; allowed: {sorted(known)}")
        return cls(**values)
