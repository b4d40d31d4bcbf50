"""Which numbers of rows are worth padding to: the products of one layer, timed once per GPU and shape, and kept.

A product of more rows is at times the faster one, as the library picks another kernel for it: on an H100 one of 448
rows takes a tenth longer than one of 472. What was measured is kept in the cache directory, so that the next process
picks the same buckets, and so gets the same tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

import d3llm_trt
from d3llm_trt.errors import BuildError, EngineError
from d3llm_trt.model.packing import TensorForm, packed_tensors, quantized_layers
from d3llm_trt.paths import cache_directory, replace_file
from d3llm_trt.runtime.engines.base import Engine, EngineSpec, MeasurableEngine
from d3llm_trt.strict_json import read_object

Seconds = dict[int, float]

# With more rows products are long, and the steps between sizes wide.
MOST_MEASURED = 1024
# Less than this is noise.
LEAST_GAIN = 0.02
# A layer of fewer bytes stays in the GPU's cache, and takes as long as its launches.
LEAST_LAYER_BYTES = 64 << 20
FOLDER = "measured_sizes"
_TIMED, _WARM_UP = 7, 100
_LOG = logging.getLogger(__name__)


def worthwhile_sizes(sizes: Sequence[int], seconds: Mapping[int, float]) -> tuple[int, ...]:
    """``sizes``, ascending, without those that a larger one beats; what was not measured stays."""
    kept, fastest_above = [], float("inf")
    for size in reversed(sizes):
        taken = seconds.get(size, 0.0)
        if taken * (1 - LEAST_GAIN) <= fastest_above:
            kept.append(size)
        if size in seconds:
            fastest_above = min(fastest_above, taken)
    return tuple(reversed(kept))


def sizes_for(engine: Engine, sizes: Sequence[int]) -> tuple[int, ...]:
    """The worthwhile ones of ``sizes`` for an engine on a GPU; all of them where products are not what takes time."""
    if not isinstance(engine, MeasurableEngine) or _layer_bytes(engine.spec) < LEAST_LAYER_BYTES:
        return tuple(sizes)
    return measured_sizes(sizes, _layer_facts(engine.spec), partial(_product_seconds, engine, engine.spec.device))


def measured_sizes(
    sizes: Sequence[int], layer: Mapping[str, Any], measure: Callable[[Sequence[int]], Seconds]
) -> tuple[int, ...]:
    """The worthwhile ones of ``sizes``; ``measure`` times those that are not in the cache directory yet.

    ``layer`` says what their time depends on. A file that cannot be read is measured anew, and one that cannot be
    written costs that time at each start, with a warning.
    """
    path = _path(layer)
    known = {} if path is None else _read(path)
    missing = [size for size in sizes if size <= MOST_MEASURED and size not in known]
    if missing:
        known |= measure(missing)
        _keep(path, layer, known)
    return worthwhile_sizes(sizes, known)


def _layer_weights(spec: EngineSpec) -> dict[str, TensorForm]:
    forms = packed_tensors(spec.model_config, str(spec.dtype).removeprefix("torch."), spec.quantization)
    names = (f"{layer}.weight" for layer in quantized_layers(spec.model_config) if layer.startswith("layers.0."))
    return {name: forms[name] for name in names}


def _layer_bytes(spec: EngineSpec) -> int:
    return sum(form.num_bytes for form in _layer_weights(spec).values())


def _layer_facts(spec: EngineSpec) -> dict[str, Any]:
    return {
        "gpu": torch.cuda.get_device_name(spec.device),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "d3llm_trt": d3llm_trt.__version__,
        "weights": {name: asdict(form) for name, form in _layer_weights(spec).items()},
    }


def _product_seconds(engine: MeasurableEngine, device: torch.device, sizes: Sequence[int]) -> Seconds:
    """Median seconds of one layer's products by number of rows, on the device's current stream."""
    largest = max(sizes)
    with torch.cuda.device(device):
        for _ in range(_WARM_UP):  # the clocks rise
            engine.run_products(largest)
        return {size: _median_seconds(engine, size, largest) for size in sorted(sizes, reverse=True)}


def _median_seconds(engine: MeasurableEngine, size: int, largest: int) -> float:
    engine.run_products(size)
    for _ in range(4):  # the host gets ahead, so that the GPU does not wait between the products that are timed
        engine.run_products(largest)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_TIMED + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        engine.run_products(size)
        mark.record()
    marks[-1].synchronize()
    times: list[float] = [start.elapsed_time(end) for start, end in itertools.pairwise(marks)]
    return statistics.median(times) / 1e3


def _path(layer: Mapping[str, Any]) -> Path | None:
    """None where there is no cache directory."""
    digest = hashlib.sha256(json.dumps(layer, sort_keys=True).encode()).hexdigest()[:16]
    try:
        return cache_directory() / FOLDER / f"{digest}.json"
    except BuildError:
        return None


def _keep(path: Path | None, layer: Mapping[str, Any], seconds: Seconds) -> None:
    text = json.dumps({**layer, "seconds": {str(size): seconds[size] for size in sorted(seconds)}}, indent=1)
    try:
        if path is None:
            raise OSError("there is no home directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, f"{text}\n".encode())
    except OSError as error:
        fix = "set D3LLM_TRT_CACHE to a directory that can be written"
        _LOG.warning("the speed of batch sizes is measured again at each start: %s; %s", error, fix)


def _read(path: Path) -> Seconds:
    """What an earlier process measured; nothing if there is no such file, or none of ours."""
    try:
        seconds = read_object(path, EngineError, "it is measured again").get("seconds")
        return {int(size): float(taken) for size, taken in seconds.items()}  # type: ignore[union-attr]
    except (EngineError, AttributeError, TypeError, ValueError):
        return {}
