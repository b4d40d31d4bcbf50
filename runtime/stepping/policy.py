"""Which steps are captured as CUDA graphs: what a user asks for, and what a GPU gets by default."""

from __future__ import annotations

from typing import Literal

from d3llm_trt.errors import ConfigError

GraphPolicy = Literal["all", "largest", "off"]
CUDA_GRAPHS: tuple[GraphPolicy, ...] = ("all", "largest", "off")
BLACKWELL = (10, 0)


def parse_policy(cuda_graphs: str | None) -> GraphPolicy | None:
    """The policy that is named; None leaves it to the GPU. Raises ConfigError on any other name."""
    for policy in CUDA_GRAPHS:
        if policy == cuda_graphs:
            return policy
    if cuda_graphs is None:
        return None
    raise ConfigError(f"cuda_graphs is {cuda_graphs!r}; allowed: {', '.join(CUDA_GRAPHS)}, or None for the default")


def policy_on(capability: tuple[int, int], asked: GraphPolicy | None) -> GraphPolicy:
    """The policy that was asked for, or the default of a GPU: on Blackwell only the largest batch of each size.

    Several captured batch sizes have faulted there.
    """
    if asked is not None:
        return asked
    return "largest" if capability >= BLACKWELL else "all"
