"""Whether the tensors of a checkpoint are the published ones: their names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from d3llm_trt.build.published_tensors import published_shapes
from d3llm_trt.build.weights_file import TensorEntry, WeightsFile
from d3llm_trt.dtypes import CHECKPOINT_DTYPES
from d3llm_trt.errors import CheckpointError
from d3llm_trt.lookalikes import MERGE_ADAPTER
from d3llm_trt.model.config import ModelConfig

SHOWN = 3
ADAPTER_PARTS = (".lora_", ".base_layer.", "base_model.model.")


def few(problems: Sequence[str], what: str) -> list[str]:
    """The first few of many like problems, and how many there are; ``what`` names their kind."""
    if len(problems) <= SHOWN + 1:
        return list(problems)
    return [*problems[:SHOWN], f"and {len(problems) - SHOWN} more, {len(problems)} in all {what}"]


def check_dtypes(files: Iterable[WeightsFile], problems: list[str]) -> str:
    """The one dtype of all weights: that of most of them where they differ, which is a problem but for vectors.

    Vectors, which are norms and biases, may be float32 beside matrices in half precision; a build casts them.
    """
    entries = [(file.path.name, name, entry) for file in files for name, entry in file.tensors.items()]
    dtypes = [entry.dtype for _, _, entry in entries if entry.dtype in CHECKPOINT_DTYPES]
    usual = max(sorted(set(dtypes)), key=dtypes.count) if dtypes else ""
    expected = f"{usual} as the others are" if usual else "BF16, F16 or F32"
    wrong = [
        f"{file}: tensor {name} is {entry.dtype}; expected {expected}"
        for file, name, entry in entries
        if entry.dtype != usual and not is_float32_vector(entry)
    ]
    problems += few(wrong, "are of another dtype")
    return CHECKPOINT_DTYPES.get(usual, "")


def is_float32_vector(entry: TensorEntry) -> bool:
    """Whether this is a norm's weight or a bias in float32."""
    return entry.dtype == "F32" and len(entry.shape) == 1


def check_tensors(config: ModelConfig, files: Sequence[WeightsFile], where: str, problems: list[str]) -> None:
    """Note every published tensor that is not there or has another shape, and every other tensor that is there.

    ``where`` names the file that lists all tensors. Raises CheckpointError on those of an adapter.
    """
    homes = {name: file for file in files for name in file.tensors}
    _refuse_adapter(homes)
    expected = published_shapes(config)
    absent = sorted(expected.keys() - homes.keys())
    missing = [f"{where}: tensor {name} is missing; expected shape {list(expected[name])}" for name in absent]
    foreign, other = [], []
    for name, file in homes.items():
        shape, found = file.tensors[name].shape, f"{file.path.name}: tensor {name}"
        if name not in expected:
            foreign.append(f"{found} {list(shape)} is not part of the network; expected none")
        elif shape != expected[name]:
            other.append(f"{found} is {list(shape)}; expected {list(expected[name])}")
    problems += few(missing, "are missing")
    problems += few(foreign, "are not part of the network")
    problems += few(other, "are of another shape")


def _refuse_adapter(homes: Mapping[str, WeightsFile]) -> None:
    for name, file in homes.items():
        if any(part in name for part in ADAPTER_PARTS):
            raise CheckpointError(f"{file.path}: tensor {name} belongs to a LoRA adapter; {MERGE_ADAPTER}")
