"""Time and peak memory of building a plan for a random checkpoint of the real shape.

``python benchmarks/plan_scale.py --layers 32 --work DIR --output benchmarks/results/plan_scale.json``
needs about 50 GB of disk for 32 layers. The build runs in a process of its own, whose peak is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from d3llm_trt import BuildConfig, build_engine
from d3llm_trt.config import TensorRTConfig

LLADA_8B: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 4096, "n_heads": 32, "n_kv_heads": 32,
    "mlp_hidden_size": 12288, "mlp_ratio": 4, "vocab_size": 126464, "embedding_size": 126464,
    "max_sequence_length": 4096, "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms",
    "layer_norm_with_affine": True, "rms_norm_eps": 1e-5, "rope": True, "rope_full_precision": True,
    "rope_theta": 500000.0, "multi_query_attention": None, "mask_token_id": 126336, "eos_token_id": 126081,
    "pad_token_id": 126081, "weight_tying": False, "include_bias": False,
}  # fmt: skip
BLOCK = {
    "attn_norm": (4096,), "q_proj": (4096, 4096), "k_proj": (4096, 4096), "v_proj": (4096, 4096),
    "attn_out": (4096, 4096), "ff_norm": (4096,), "ff_proj": (12288, 4096), "up_proj": (12288, 4096),
    "ff_out": (4096, 12288),
}  # fmt: skip
TOP = {"wte": (126464, 4096), "ln_f": (4096,), "ff_out": (126464, 4096)}


def make_checkpoint(path: Path, layers: int) -> int:
    """A random bfloat16 checkpoint of LLaDA-8B's shape, one shard per layer. Returns its bytes."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**LLADA_8B, "n_layers": layers}))
    index: dict[str, str] = {}
    parts = {"top": {f"model.transformer.{name}.weight": shape for name, shape in TOP.items()}}
    for layer in range(layers):
        parts[str(layer)] = {f"model.transformer.blocks.{layer}.{name}.weight": shape for name, shape in BLOCK.items()}
    for number, shapes in parts.items():
        tensors = {name: _random(shape) for name, shape in shapes.items()}
        save_file(tensors, path / f"model-{number}.safetensors")
        index |= dict.fromkeys(shapes, f"model-{number}.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()


def _build(checkpoint: Path, engine: Path, strip: bool) -> None:
    options = TensorRTConfig(compute_capabilities=("8.9",), strip_weights=strip)
    config = BuildConfig("tensorrt-rtx", max_batch_size=4, max_seq_len=1024, tensorrt=options)
    build_engine(checkpoint, engine, config)


def _memory(pid: int) -> dict[str, int]:
    """Resident bytes of a process: all, and those that are no mapped files."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon") if name in lines}


def measure(checkpoint: Path, engine: Path, strip: bool) -> dict[str, Any]:
    """Build in a process of its own, and look at its memory ten times a second."""
    worker = multiprocessing.get_context("spawn").Process(target=_build, args=(checkpoint, engine, strip))
    start, peaks = time.monotonic(), {"VmRSS": 0, "RssAnon": 0}
    worker.start()
    assert worker.pid is not None
    while worker.is_alive():
        with contextlib.suppress(OSError):  # it may just have ended
            for name, size in _memory(worker.pid).items():
                peaks[name] = max(peaks[name], size)
        worker.join(0.1)
    result = {
        "seconds": time.monotonic() - start,
        "peak_resident_bytes": peaks["VmRSS"],
        "peak_anonymous_bytes": peaks["RssAnon"],
    }
    if worker.exitcode != 0:
        return {**result, "failed": f"exit code {worker.exitcode}"}
    return {**result, "files": {file.name: file.stat().st_size for file in engine.iterdir()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument(
        "--strip", action="store_true", help="a weight-stripped plan; needs a GPU with TensorRT for RTX"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint and engine; removed afterwards")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    try:
        size = make_checkpoint(args.work / "checkpoint", args.layers)
        result = measure(args.work / "checkpoint", args.work / "engine", args.strip)
    finally:
        shutil.rmtree(args.work, ignore_errors=True)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    result |= {"layers": args.layers, "checkpoint_bytes": size, "machine_memory_bytes": memory, "stripped": args.strip}
    for kind in ("resident", "anonymous"):
        result[f"{kind}_over_checkpoint"] = result[f"peak_{kind}_bytes"] / size
    print(json.dumps(result, indent=2))
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
