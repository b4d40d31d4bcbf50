"""What an engine is built for: BuildConfig is the wish, EngineConfig the answer with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Any, ClassVar

from d3llm_trt.dtypes import COMPUTE, HALF
from d3llm_trt.errors import ConfigError
from d3llm_trt.gpus import RTX_DEFAULT, rtx_capabilities
from d3llm_trt.settings import from_mapping, is_integer, is_number, make_plain, require

BACKENDS = ("torch", "tensorrt", "tensorrt-rtx")
DTYPES = ("auto", *COMPUTE)
DEFAULT_MAX_SEQ_LEN = 2048
ATTENTIONS, MASKS = ("native", "plugin"), ("lengths", "explicit")
QUANTIZATIONS = ("fp8",)


@dataclass(frozen=True)
class TensorRTConfig:
    """Options of the TensorRT backends; ``None`` takes the backend's default.

    Args:
        attention: ``native`` (TensorRT's own, on padded windows) or ``plugin`` (ours, on packed ones).
        attention_mask: how ``native`` hides what is behind a window: ``lengths`` or an ``explicit`` mask.
        token_buckets: sizes of windows (``native``) or passes (``plugin``) with an optimization profile each, as in
            128,512.
        compute_capabilities: GPUs that a ``tensorrt-rtx`` plan is for, as in 8.9,12.0.
        optimization_level: 0 (fast build) to 5 (fast plan).
        workspace_gib: most scratch memory of a layer.
        version_compatible: the plan also runs on newer TensorRT versions.
        hardware_compatible: the plan also runs on other GPUs, from Ampere on.
        weight_streaming: weights may stay on the host at run time.
        strip_weights: leave the weights out of the plan; they are refitted from ``rank0.safetensors`` at load.
        timing_cache: file that remembers measured kernels between builds.
    """

    attention: str | None = None
    attention_mask: str = "lengths"
    token_buckets: tuple[int, ...] | None = None
    compute_capabilities: tuple[str, ...] | None = None
    optimization_level: int = 3
    workspace_gib: float | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    weight_streaming: bool = False
    strip_weights: bool = False
    timing_cache: str | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("token_buckets", "compute_capabilities"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            require(value is None or isinstance(value, (list, tuple)), name, value, "None or a list")
        for name in ("version_compatible", "hardware_compatible", "weight_streaming", "strip_weights"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        buckets, gib, gpus, cache = self.token_buckets, self.workspace_gib, self.compute_capabilities, self.timing_cache
        require(cache is None or isinstance(cache, str), "timing_cache", cache, "None or a file's name")
        require(self.attention in (None, *ATTENTIONS), "attention", self.attention, ", ".join(ATTENTIONS))
        require(self.attention_mask in MASKS, "attention_mask", self.attention_mask, ", ".join(MASKS))
        sound = buckets is None or (len(buckets) > 0 and all(is_integer(size, 1) for size in buckets))
        require(sound, "token_buckets", buckets, "None or sizes of 1 or more")
        level = self.optimization_level
        require(is_integer(level, 0, 5), "optimization_level", level, "an integer in 0..5")
        room = gib is None or (is_number(gib) and 0.001 <= gib <= 1024)
        require(room, "workspace_gib", gib, "None or a number in 0.001..1024")
        named = gpus is None or all(isinstance(name, str) for name in gpus)
        different = named and (gpus is None or 0 < len(gpus) == len(set(gpus)))
        require(different, "compute_capabilities", gpus, "None or different ones, as in 8.9")

    def attention_of(self, backend: str) -> str:
        """The chosen attention, or the default of ``backend``."""
        return self.attention or ("native" if backend == "tensorrt-rtx" else "plugin")

    def resolved(self, backend: str, max_tokens: int, precision: str = "bfloat16") -> PlanConfig:
        """These options with the defaults of ``backend`` filled in; ``max_tokens`` is the largest bucket.

        ``precision`` is the quantization or else the dtype. Raises ConfigError on what the backend cannot do.
        """
        rtx = backend == "tensorrt-rtx"
        attention = self.attention_of(backend)
        for name, wrong, reason in (
            ("attention", rtx and attention == "plugin", "it has no plugins; use native"),
            ("attention_mask", attention == "plugin" and self.attention_mask != "lengths", "the plugin takes lengths"),
            ("hardware_compatible", rtx and self.hardware_compatible, "name GPUs in compute_capabilities"),
            ("version_compatible", rtx and self.version_compatible, "its plans belong to one version"),
            ("timing_cache", rtx and self.timing_cache is not None, "it measures no kernels when it builds"),
            ("compute_capabilities", not rtx and self.compute_capabilities is not None, "it builds for its own GPU"),
        ):
            if wrong:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, which {backend} cannot: {reason}")
        supported = rtx_capabilities(precision)
        defaults = tuple(name for name in RTX_DEFAULT if name in supported)
        capabilities = self.compute_capabilities or defaults if rtx else None
        for capability in capabilities or ():
            allowed = f"{', '.join(supported)} for {precision}"
            require(capability in supported, "compute_capabilities", capability, allowed)
        one = not (rtx and self.strip_weights) or len(capabilities or ()) == 1
        require(one, "compute_capabilities", capabilities, "one with strip_weights; a plan refits on one kind of GPU")
        buckets = self.token_buckets or default_buckets(max_tokens)
        require(max(buckets) <= max_tokens, "token_buckets", max(buckets), f"at most {max_tokens}")
        complete = tuple(sorted({*buckets, max_tokens}))
        chosen = {"attention": attention, "token_buckets": complete, "compute_capabilities": capabilities}
        return PlanConfig(**{**vars(self), **chosen})


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TensorRTConfig):
    """Options of one plan: a TensorRTConfig that leaves nothing to the backend.

    ``compute_capabilities`` is None for the GPU on which the plan is built, ``workspace_gib`` for TensorRT's own limit.
    """

    attention: str
    token_buckets: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_chosen(self, "attention", "token_buckets")


def _require_chosen(answer: PlanConfig | EngineConfig, *names: str) -> None:
    for name in names:
        require(getattr(answer, name) is not None, name, None, "a value; only a wish may leave it open")


def default_buckets(max_tokens: int) -> tuple[int, ...]:
    """128, then twice as many as the one before, up to ``max_tokens``."""
    sizes = [128]
    while sizes[-1] < max_tokens:
        sizes.append(sizes[-1] * 2)
    return tuple(sorted({min(size, max_tokens) for size in sizes}))


@dataclass(frozen=True)
class BuildConfig:
    """What an engine shall be built for; ``None`` takes a default that depends on the checkpoint or the backend.

    Args:
        backend: how the network is compiled: ``torch`` packs the weights, the others build a plan.
        dtype: the type of weights and activations; ``auto`` keeps the checkpoint's.
        max_batch_size: slots, so requests that are decoded together.
        max_seq_len: prompt plus ``max_tokens`` of one request; by default the model's limit, at most 2048.
        max_num_tokens: rows of one forward pass over all requests; by default ``max_batch_size * max_seq_len``.
        quantization: reduced precision of the weights and inputs of all linear layers but the LM head; ``fp8`` needs
            compute capability 8.9 on a GPU; by default none.
        calibration_prompts: file of prompts, as ``d3llm-trt generate --file`` reads, whose unmasking sets the scales of
            inputs; by default generated ones.
        tensorrt: options of the TensorRT backends.
    """

    backend: str = "torch"
    dtype: str = "auto"
    max_batch_size: int = 8
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    quantization: str | None = None
    calibration_prompts: str | None = None
    tensorrt: TensorRTConfig | None = None

    _options: ClassVar[type[TensorRTConfig]] = TensorRTConfig

    def __post_init__(self) -> None:
        make_plain(self)
        self._check_calibration()
        options: object = self.tensorrt
        if isinstance(options, Mapping):
            options = from_mapping(self._options, options, "tensorrt")
            object.__setattr__(self, "tensorrt", options)
        sound = options is None or isinstance(options, self._options)
        require(sound, "tensorrt", options, f"None or a {self._options.__name__}")
        quantized = self.quantization in (None, *QUANTIZATIONS)
        require(quantized, "quantization", self.quantization, ", ".join(("None", *QUANTIZATIONS)))
        require(self.backend in BACKENDS, "backend", self.backend, ", ".join(BACKENDS))
        require(self.dtype in DTYPES, "dtype", self.dtype, ", ".join(DTYPES))
        for name, top in (("max_batch_size", 4096), ("max_seq_len", 1 << 20), ("max_num_tokens", 1 << 30)):
            value = getattr(self, name)
            sound = is_integer(value, 1, top) or (value is None and name != "max_batch_size")
            require(sound, name, value, f"an integer in 1..{top}")

    def _check_calibration(self) -> None:
        prompts: object = self.calibration_prompts
        if isinstance(prompts, PurePath):
            object.__setattr__(self, "calibration_prompts", str(prompts))
        elif prompts is not None:
            require(isinstance(prompts, str), "calibration_prompts", prompts, "None or a file's name")
        if prompts is not None and self.quantization is None:
            fix = "set quantization to 'fp8', or leave it out"
            raise ConfigError(f"calibration_prompts is {str(prompts)!r}, which goes with quantization 'fp8'; {fix}")

    def resolved(self, max_position_embeddings: int, checkpoint_dtype: str) -> EngineConfig:
        """The answer for one checkpoint: every default filled in.

        Raises ConfigError if ``max_seq_len`` is beyond the model's limit or ``max_num_tokens`` below ``max_seq_len``,
        and on options that do not go with the backend.
        """
        limit, seq, tokens = max_position_embeddings, self.max_seq_len, self.max_num_tokens
        seq = min(limit, DEFAULT_MAX_SEQ_LEN) if seq is None else seq
        require(seq <= limit, "max_seq_len", seq, f"at most the model's limit {limit}")
        tokens = self.max_batch_size * seq if tokens is None else tokens
        require(tokens >= seq, "max_num_tokens", tokens, f"at least max_seq_len, {seq}")
        dtype = checkpoint_dtype if self.dtype == "auto" else self.dtype
        options = self._plan_options(seq, tokens, dtype)
        chosen = {"dtype": dtype, "max_seq_len": seq, "max_num_tokens": tokens, "tensorrt": options}
        return EngineConfig(**{**vars(self), **chosen})

    def _plan_options(self, seq: int, tokens: int, dtype: str) -> PlanConfig | None:
        if self.backend == "torch":
            if self.quantization is not None:
                require(dtype in HALF, "dtype", dtype, f"{', '.join(HALF)} with {self.quantization}")
            if self.tensorrt is not None:
                values = vars(self.tensorrt)
                changes = (
                    f"{item.name} is {values[item.name]!r}"
                    for item in fields(self.tensorrt)
                    if values[item.name] != item.default
                )
                what = next(changes, "tensorrt is set")
                raise ConfigError(f"{what}, which the torch backend does not use; choose a tensorrt backend")
            return None
        options = self.tensorrt or TensorRTConfig()
        if options.strip_weights and self.quantization is not None:
            raise ConfigError(f"strip_weights is True with quantization {self.quantization!r}; allowed: one of the two")
        largest = seq if options.attention_of(self.backend) == "native" else tokens
        return options.resolved(self.backend, largest, self.quantization or dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored under ``build_config`` in an engine directory."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class EngineConfig(BuildConfig):
    """What an engine is built for: a BuildConfig that leaves nothing open, made by :meth:`BuildConfig.resolved`.

    ``dtype`` is never ``auto``; ``tensorrt`` is None for the torch backend, and only there.
    """

    max_seq_len: int
    max_num_tokens: int
    tensorrt: PlanConfig | None = None

    _options: ClassVar[type[TensorRTConfig]] = PlanConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_chosen(self, "max_seq_len", "max_num_tokens")
        require(self.dtype in COMPUTE, "dtype", self.dtype, ", ".join(COMPUTE))
        planned = self.backend != "torch"
        require((self.tensorrt is not None) == planned, "tensorrt", self.tensorrt, "options of a plan, and only of one")

    @property
    def plan(self) -> PlanConfig:
        """The options of the plan. Raises ConfigError for the torch backend, which has none."""
        if self.tensorrt is None:
            raise ConfigError(f"backend is {self.backend!r}; allowed: tensorrt, tensorrt-rtx, which build a plan")
        return self.tensorrt
