"""Which Stepper makes the passes of an engine."""

from __future__ import annotations

import torch

from d3llm_trt.errors import ConfigError
from d3llm_trt.runtime.engines.base import Engine
from d3llm_trt.runtime.stepping.buckets import Buckets, batch_sizes, token_sizes
from d3llm_trt.runtime.stepping.kernel_stepper import KernelStepper
from d3llm_trt.runtime.stepping.measured_sizes import sizes_for
from d3llm_trt.runtime.stepping.policy import GraphPolicy, policy_on
from d3llm_trt.runtime.stepping.stepper import Stepper
from d3llm_trt.runtime.stepping.tensor_stepper import TensorStepper


def make_stepper(engine: Engine, choice: GraphPolicy | None = None) -> Stepper:
    """A KernelStepper if the engine can be captured in CUDA graphs, with graphs by policy; else a TensorStepper.

    ``choice`` is the user's policy; None takes the GPU's. Raises ConfigError if it wants graphs that cannot be had.
    """
    spec = engine.spec
    if not spec.graph_capturable:
        if choice not in (None, "off"):
            reason = f"the {spec.backend} engine on {spec.device.type} cannot run inside a CUDA graph"
            raise ConfigError(f"cuda_graphs is {choice!r}, but {reason}; allowed: off or None")
        return TensorStepper(engine)
    policy = policy_on(torch.cuda.get_device_capability(spec.device), choice)
    tokens = sizes_for(engine, token_sizes(spec.max_num_tokens))
    buckets = Buckets(batch_sizes(spec.max_batch_size), tokens, largest_batch=policy == "largest")
    return KernelStepper(engine, buckets, graphs=policy != "off")
