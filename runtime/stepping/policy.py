"""Which steps are captured as CUDA graphs: what a user asks for, and what a GPU gets by default."""

from __future__ import annotations

from typing import Literal, cast, get_args

from d3llm_trt.settings import require

GraphPolicy = Literal["all", "largest", "off"]
CUDA_GRAPHS: tuple[GraphPolicy, ...] = get_args(GraphPolicy)
BLACKWELL = (10, 0)


def parse_policy(cuda_graphs: str | None) -> GraphPolicy | None:
    """The policy that is named; None leaves it to the GPU. Raises ConfigError on any other name."""
    allowed = f"{', '.join(CUDA_GRAPHS)}, or None for the default"
    require(cuda_graphs in (None, *CUDA_GRAPHS), "cuda_graphs", cuda_graphs, allowed)
    return cast("GraphPolicy | None", cuda_graphs)


def policy_on(capability: tuple[int, int], choice: GraphPolicy | None) -> GraphPolicy:
    """The user's choice, or the default of a GPU: on Blackwell only the largest batch of each size.

    Several captured batch sizes have faulted there.
    """
    if choice is not None:
        return choice
    return "largest" if capability >= BLACKWELL else "all"
