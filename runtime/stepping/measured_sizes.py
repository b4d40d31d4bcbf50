"""Which numbers of rows are worth padding to: the products of one layer, timed once per GPU and shape, and kept.

A product of more rows is at times the faster one, as the library picks another kernel for it: on an H100 one of 448
rows takes a tenth longer than one of 472. What was measured is kept in the cache directory, so that the next process
picks the same buckets, and so gets the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from d3llm_trt.dtypes import dtype_name, torch_dtype
from d3llm_trt.errors import ConfigError
from d3llm_trt.files import cache_directory, replace_file
from d3llm_trt.model.packing import TensorForm, layer_linears, packed_tensors
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.runtime.engines.base import Engine, EngineSpec
from d3llm_trt.strict_json import read_object
from d3llm_trt.version import __version__

Seconds = dict[int, float]

# With more rows products are long, and the steps between sizes wide.
MOST_MEASURED = 1024
# Less than this is noise.
LEAST_GAIN = 0.02
# Rows: products differ by tiles of up to twice as many, and a wrong measurement can then do no great harm.
MOST_PADDING = 64
# A layer of fewer bytes stays in the GPU's cache, and takes as long as its launches.
LEAST_LAYER_BYTES = 64 << 20
FOLDER = "measured_sizes"
_WARM_UP, _REPEATS, _ROUNDS = 100, 3, 5
_LOG = logging.getLogger(__name__)


def worthwhile_sizes(sizes: Sequence[int], seconds: Mapping[int, float]) -> tuple[int, ...]:
    """``sizes``, ascending, without those beaten by one of up to MOST_PADDING rows more.

    What was not measured stays.
    """
    kept: list[int] = []
    for size in reversed(sizes):
        near = (seconds[larger] for larger in kept if larger <= size + MOST_PADDING and larger in seconds)
        if size not in seconds or seconds[size] * (1 - LEAST_GAIN) <= min(near, default=float("inf")):
            kept.append(size)
    return tuple(reversed(kept))


def sizes_for(engine: Engine, sizes: Sequence[int]) -> tuple[int, ...]:
    """The worthwhile ones of ``sizes`` for an engine on a GPU.

    All of them where products are not what takes time, and for a plan, which has chosen their kernels.
    """
    spec, forms = engine.spec, _layer_tensors(engine.spec)
    if spec.backend != "torch" or sum(form.num_bytes for form in forms.values()) < LEAST_LAYER_BYTES:
        return tuple(sizes)
    layer = {
        "gpu": torch.cuda.get_device_name(spec.device),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "d3llm_trt": __version__,
        "weights": {name: asdict(form) for name, form in forms.items() if name.endswith(".weight")},
    }
    return measured_sizes(sizes, layer, partial(_product_seconds, spec))


def measured_sizes(
    sizes: Sequence[int], layer: Mapping[str, Any], measure: Callable[[Sequence[int]], Seconds]
) -> tuple[int, ...]:
    """The worthwhile ones of ``sizes``; ``measure`` times those that are not in the cache directory yet.

    ``layer`` says what their time depends on. A file that cannot be read is measured anew, and one that cannot be
    written costs that time at each start, with a warning. Where measuring fails all sizes stay, with a warning too.
    """
    known = _read(layer)
    missing = [size for size in sizes if size <= MOST_MEASURED and size not in known]
    if missing:
        try:
            known |= measure(missing)
        except RuntimeError as error:  # CUDA raises it, if memory is short for example
            _LOG.warning("the speed of batch sizes could not be measured: %s", error)
            return tuple(sizes)
        _keep(layer, known)
    return worthwhile_sizes(sizes, known)


def layer_products(spec: EngineSpec) -> Callable[[int], None]:
    """What runs the matrix products of one layer of an engine, on as many rows as it is called with.

    Weights and rows are its own, with any numbers in them: time depends on sizes and dtypes.
    """
    device, dtype = spec.device, spec.dtype
    generator = torch.Generator(device).manual_seed(0)  # the user's own stays as it is
    weights = {
        name: torch.randn(form.shape, dtype=dtype, device=device, generator=generator).to(torch_dtype(form.dtype))
        for name, form in _layer_tensors(spec).items()
    }
    cache, tables = torch.empty(0, dtype=dtype, device=device), rotary_tables(spec.model_config, 1)
    ops = TorchOps(spec.model_config, weights, cache, Windows.whole(1), tables)

    @torch.inference_mode()
    def run(tokens: int) -> None:
        for name in layer_linears(0):
            weight = weights[f"{name}.weight"]
            ops.linear(name, weight.new_empty(tokens, weight.shape[1]))

    return run


def _layer_tensors(spec: EngineSpec) -> dict[str, TensorForm]:
    """Weights, biases and scales of the linear layers of one transformer layer."""
    forms = packed_tensors(spec.model_config, dtype_name(spec.dtype), spec.quantization)
    return {name: form for name, form in forms.items() if name.rpartition(".")[0] in layer_linears(0)}


def _product_seconds(spec: EngineSpec, sizes: Sequence[int]) -> Seconds:
    """Least seconds of one layer's products by number of rows: whatever else the GPU or the host does only adds."""
    with torch.cuda.device(spec.device):
        run_products = layer_products(spec)
        for _ in range(_WARM_UP):  # the clocks rise
            run_products(max(sizes))
        # Graphs, because a slow host takes longer to launch products than the GPU to run them.
        pool = torch.cuda.graph_pool_handle()
        graphs = {size: _captured(run_products, size, pool) for size in sorted(sizes, reverse=True)}
        rounds = [
            {size: gpu_seconds(graph.replay) / _REPEATS for size, graph in graphs.items()} for _ in range(_ROUNDS)
        ]
    return {size: min(taken[size] for taken in rounds) for size in sizes}


def _captured(run_products: Callable[[int], None], size: int, pool: Any) -> torch.cuda.CUDAGraph:
    run_products(size)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        for _ in range(_REPEATS):
            run_products(size)
    return graph


def gpu_seconds(run: Callable[[], object]) -> float:
    """How long the GPU works on what ``run`` enqueues on the current stream; waits for it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def _path(layer: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(layer, sort_keys=True).encode()).hexdigest()[:16]
    return cache_directory() / FOLDER / f"{digest}.json"


def _read(layer: Mapping[str, Any]) -> Seconds:
    """What an earlier process measured; nothing if there is no such file, or it is damaged."""
    try:
        seconds = read_object(_path(layer), ConfigError, "it is measured again")["seconds"]
        return {int(size): float(taken) for size, taken in seconds.items()}
    except (ConfigError, LookupError, AttributeError, TypeError, ValueError):
        return {}


def _keep(layer: Mapping[str, Any], seconds: Seconds) -> None:
    text = json.dumps({**layer, "seconds": dict(sorted(seconds.items()))}, indent=1)
    try:
        path = _path(layer)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, f"{text}\n".encode())
    except (OSError, ConfigError) as error:
        fix = "set D3LLM_TRT_CACHE to a directory that can be written"
        _LOG.warning("the speed of batch sizes is measured again at each start: %s; %s", error, fix)
