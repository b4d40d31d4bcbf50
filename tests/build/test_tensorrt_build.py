"""Real plans, built by TensorRT for RTX without a GPU (evidence level L2), and what goes wrong while building."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from d3llm_trt import LLM, BuildConfig, build_engine
from d3llm_trt.build.tensorrt import attention
from d3llm_trt.build.tensorrt import compile as compiling
from d3llm_trt.build.tensorrt.network import packed_bindings, padded_bindings
from d3llm_trt.capacity import estimate
from d3llm_trt.config import TensorRTConfig, default_buckets
from d3llm_trt.errors import BuildError, ConfigError, EngineError
from d3llm_trt.manifest import PLAN_FILE, WEIGHTS_FILE, load_manifest, verify_files
from d3llm_trt.model.config import ModelConfig
from d3llm_trt.model.torch_ops import rotary_tables
from tests.support.golden_cases import GOLDEN
from tests.support.tiny_models import CHECKPOINTS, ROOT

trt = pytest.importorskip("tensorrt_rtx")
BOTH = ("8.9", "12.0")
PRECISIONS = [("bfloat16", None), ("float16", None), ("float32", None), ("bfloat16", "fp8")]
SOURCES = [*CHECKPOINTS.values(), GOLDEN / "llada_tiny", GOLDEN / "dream_tiny"]


def config(dtype: str = "bfloat16", quantization: str | None = None, **options: Any) -> BuildConfig:
    """Batches of 1 and 8."""
    own = {"compute_capabilities": BOTH, "token_buckets": (64, 128), **options}
    return BuildConfig("tensorrt-rtx", dtype, 8, 128, quantization=quantization, tensorrt=TensorRTConfig(**own))


@pytest.mark.parametrize(("dtype", "quantization"), PRECISIONS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_plans(source: Path, dtype: str, quantization: str | None, tmp_path: Path) -> None:
    mask = "explicit" if dtype == "float16" or quantization else "lengths"
    asked = config(dtype, quantization, attention_mask=mask)
    path = build_engine(source, tmp_path / "engine", asked)
    manifest = load_manifest(path)
    verify_files(path, manifest)
    assert PLAN_FILE in manifest.files and "rank0.safetensors" not in manifest.files
    assert manifest.compute_capabilities == BOTH and manifest.backend_version == trt.__version__
    options = manifest.build_config.tensorrt
    assert options is not None and options.attention == "native" and options.attention_mask == mask
    assert options.token_buckets == (64, 128)


def test_a_plan_needs_a_gpu_to_run(tmp_path: Path) -> None:
    path = build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", config())
    with pytest.raises(EngineError, match="needs an NVIDIA GPU; for the CPU build with --backend torch"):
        LLM(path, device="cpu")


# Options


@pytest.mark.parametrize(
    ("backend", "options", "complaint"),
    [
        (
            "tensorrt-rtx",
            {"attention": "plugin"},
            "attention is 'plugin', which tensorrt-rtx cannot",
        ),
        ("tensorrt-rtx", {"hardware_compatible": True}, "hardware_compatible is True"),
        ("tensorrt-rtx", {"version_compatible": True}, "version_compatible is True"),
        ("tensorrt-rtx", {"timing_cache": "t"}, "timing_cache is 't'"),
        ("tensorrt-rtx", {"compute_capabilities": ("9.0",)}, "compute_capabilities is '9.0'; allowed: 8.0"),
        ("tensorrt-rtx", {"token_buckets": (4096,)}, "token_buckets is 4096; allowed: at most 512"),
        ("tensorrt-rtx", {"compute_capabilities": ("7.5",)}, "allowed: 8.0, 8.6, 8.9, 12.0, 12.1 for float32"),
        ("tensorrt-rtx", {"strip_weights": True}, r"compute_capabilities is \('8.6', .*; allowed: one with strip_"),
        ("tensorrt", {"compute_capabilities": ("9.0",)}, "builds for its own GPU"),
        ("tensorrt", {"attention_mask": "explicit"}, "attention_mask is 'explicit', which tensorrt cannot"),
        ("torch", {}, "tensorrt is set, which the torch backend does not use"),
        ("torch", {"token_buckets": (64,)}, r"token_buckets is \(64,\), which the torch backend does not use"),
    ],
)
def test_what_a_backend_cannot_do_is_said_before_any_work(
    backend: str, options: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    asked = BuildConfig(backend, tensorrt=TensorRTConfig(**options))
    with pytest.raises(ConfigError, match=complaint):
        build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", asked)
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"attention": "flash"}, "attention is 'flash'; allowed: native, plugin"),
        ({"attention_mask": "causal"}, "attention_mask is 'causal'"),
        ({"token_buckets": ()}, "token_buckets"),
        ({"token_buckets": (0,)}, "token_buckets"),
        ({"optimization_level": 6}, "optimization_level is 6"),
        ({"strip_weights": "no"}, "strip_weights is 'no'"),
        ({"token_buckets": 5}, "token_buckets is 5"),
        ({"compute_capabilities": "8.9"}, "compute_capabilities is '8.9'; allowed: None or a list"),
        ({"compute_capabilities": ()}, "compute_capabilities is"),
        ({"compute_capabilities": ("8.9", "8.9")}, "compute_capabilities is"),
        ({"timing_cache": 5}, "timing_cache is 5"),
        ({"workspace_gib": 1e300}, "workspace_gib is 1e"),
        ({"workspace_gib": 0}, "workspace_gib is 0"),
    ],
)
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        TensorRTConfig(**options)


def test_defaults_of_the_backends() -> None:
    rtx, full = (TensorRTConfig().resolved(name, 1000) for name in ("tensorrt-rtx", "tensorrt"))
    assert (rtx.attention, full.attention) == ("native", "plugin")
    assert rtx.compute_capabilities == ("8.6", "8.9", "12.0") and full.compute_capabilities is None
    assert rtx.token_buckets == default_buckets(1000) == (128, 256, 512, 1000)


def test_profiles_cover_every_size_once() -> None:
    model = ModelConfig("dream", 64, 32, 64, 2, 4, 2, 8, 1e-6, 1e4, 128, 1, 2, 2)
    settings = config(token_buckets=(32, 128)).resolved(128, "bfloat16")
    padded = {binding.name: binding for binding in padded_bindings(model, settings)}
    spans = [(low, high) for low, _, high in padded["token_ids"].profiles]
    assert spans == [((1, 1), (1, 32)), ((1, 33), (1, 128)), ((2, 1), (8, 32)), ((2, 33), (8, 128))]
    assert padded["v_cache.1"].profiles[2] == ((2, 2, 128, 8), (8, 2, 128, 8), (8, 2, 128, 8))
    packed = {binding.name: binding for binding in packed_bindings(model, settings)}
    assert packed["token_ids"].profiles == (((1,), (32,), (32,)), ((33,), (128,), (128,)))
    assert packed["kv_cache.0"].shape == (8, 2, 2, 128, 8)


# Failures


def test_a_missing_tensorrt_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="backend 'tensorrt' needs tensorrt-cu13"):
        build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", BuildConfig("tensorrt"))
    assert list(tmp_path.iterdir()) == []


def test_a_stripped_build_says_that_it_takes_more_memory() -> None:
    model = ModelConfig("dream", 64, 32, 64, 2, 4, 2, 8, 1e-6, 1e4, 128, 1, 2, 2)
    memory = [estimate(model, stripped(strip).resolved(128, "bfloat16")).memory for strip in (False, True)]
    assert memory[1] / memory[0] == pytest.approx(3.8 / 1.1, rel=0.01)


def stripped(strip: bool, dtype: str = "bfloat16") -> BuildConfig:
    """For the one kind of GPU that a stripped plan can be for."""
    return config(dtype, compute_capabilities=("8.9",), strip_weights=strip)


def test_stripped_rtx_plans_need_a_gpu_where_they_are_built(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="strip_weights with tensorrt-rtx needs a GPU"):
        build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", stripped(True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_stripped_plans_leave_the_weights_out(source: Path, dtype: str, tmp_path: Path) -> None:
    full, without = (build_engine(source, tmp_path / str(strip), stripped(strip, dtype)) for strip in (False, True))
    manifest = load_manifest(without)
    verify_files(without, manifest)
    assert WEIGHTS_FILE in manifest.files
    weight = load_file(without / WEIGHTS_FILE)["layers.0.mlp.down.weight"]
    plans = [(path / PLAN_FILE).read_bytes() for path in (full, without)]
    assert [part_of(weight) in plan for plan in plans] == [True, False]
    table = rotary_tables(manifest.model_config, 128)[0]
    assert all(part_of(table[60:]) in plan for plan in plans)


def part_of(tensor: torch.Tensor) -> bytes:
    """32 of its values, as they lie in memory."""
    return tensor.flatten()[:32].view(torch.uint8).numpy().tobytes()


def test_tensorrts_own_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 attention has no fused kernel; without leave to decompose it, TensorRT gives up."""
    monkeypatch.setattr(attention, "WITHOUT_FUSED_KERNELS", ())
    with pytest.raises(BuildError, match=r"TensorRT could not build the plan.*Attention operation was not supported"):
        build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", config("float32"))
    assert list(tmp_path.iterdir()) == []


def test_a_refused_layer_is_named_in_the_models_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation tables of a shape that does not fit: TensorRT returns no layer."""
    monkeypatch.setattr(attention, "rotary_tables", lambda config, positions: (torch.ones(3), torch.ones(3)))
    with pytest.raises(BuildError, match=r"TensorRT refused the layer layers\.0\.attention\.q\.rope"):
        build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", config("bfloat16"))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    original = compiling._writer
    monkeypatch.setattr(compiling, "_writer", lambda module, file: original(module, Full()))
    with pytest.raises(BuildError, match="No space left on device; free some space"):
        build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", config())
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_and_can_cancel(tmp_path: Path) -> None:
    seen = set()

    def progress(stage: str, done: int, total: int) -> None:
        assert 1 <= done <= total
        seen.add(stage)
        if stage == "optimizing graph":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", config(), progress=progress)
    assert {"pack weights", "optimizing graph"} <= seen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["optimizing graph", "computing profile costs"])
def test_ctrl_c_ends_a_build(tmp_path: Path, stage: str) -> None:
    """The signal comes while TensorRT is at work, from a thread, as from a keyboard."""
    code = (
        "import os, signal, threading\n"
        "from d3llm_trt import BuildConfig, build_engine\n"
        "sent = []\n"
        "def progress(stage, done, total):\n"
        f"    if stage == {stage!r} and not sent:\n"
        "        sent.append(True); threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()\n"
        f"source, target = {str(GOLDEN / 'llada_tiny')!r}, {str(tmp_path / 'engine')!r}\n"
        "try:\n"
        "    build_engine(source, target, BuildConfig('tensorrt-rtx'), progress=progress)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert done.stdout == "interrupted\n" and list(tmp_path.iterdir()) == []


def test_an_old_builder_is_not_collected_while_a_new_one_is_made() -> None:
    """TensorRT would wait for its own lock."""
    code = (
        "import gc\n"
        "from d3llm_trt.build.tensorrt import compile\n"
        "from d3llm_trt.tensorrt_module import load_tensorrt\n"
        "trt, original = load_tensorrt('tensorrt-rtx'), compile.make_messages\n"
        "class Collecting(trt.ILogger):\n"
        "    def __init__(self):\n"
        "        trt.ILogger.__init__(self)\n"
        "    def log(self, severity, message):\n"
        "        gc.collect()\n"
        "def make_messages(trt):\n"
        "    messages = original(trt)\n"
        "    messages.logger = Collecting()\n"
        "    return messages\n"
        "gc.disable()\n"
        "ring = [compile.make_builder(trt)]\n"
        "ring.append(ring)\n"
        "del ring\n"
        "compile.make_messages = make_messages\n"
        "print(compile.make_builder(trt)[0] is not None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_an_error_of_the_progress_callback_is_the_callers(tmp_path: Path) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "optimizing graph":
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", config(), progress=progress)
    assert list(tmp_path.iterdir()) == []


def test_fp8_builds_with_the_defaults(tmp_path: Path) -> None:
    asked = BuildConfig("tensorrt-rtx", "bfloat16", 1, 64, quantization="fp8")
    path = build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", asked)
    assert load_manifest(path).compute_capabilities == ("8.9", "12.0")


def test_a_killed_build_leaves_nothing_that_loads(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from d3llm_trt import BuildConfig, build_engine\n"
        "def progress(stage, done, total):\n"
        "    if stage == 'optimizing graph' and done == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"source, target = {str(GOLDEN / 'llada_tiny')!r}, {str(tmp_path / 'engine')!r}\n"
        "build_engine(source, target, BuildConfig('tensorrt-rtx'), progress=progress)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True)
    assert done.returncode == -9 and not (tmp_path / "engine").exists()
    build_engine(GOLDEN / "llada_tiny", tmp_path / "engine", config())
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
