"""What a pair of tiny checkpoints learns, and how large its networks are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from d3llm_trt.model.config import Family
from examples.tiny_d3llm.chains import CHAINS, EXERCISES
from examples.tiny_d3llm.problems import TEMPLATES, Problem, Split, Template, make_problems


@dataclass(frozen=True)
class Size:
    """What the networks of the two families do not share."""

    num_kv_heads: int
    intermediate_size: int


@dataclass(frozen=True)
class Task:
    """A kind of problems, and networks for it.

    Args:
        name: checkpoints are called ``{name}-{family}``.
        templates: what problems are drawn from.
        exercises: what training problems are drawn from too.
        answer_positions: the longest masked part of a canvas in training, in tokens; every answer is shorter.
        max_positions: of a canvas.
    """

    name: str
    templates: tuple[Template, ...]
    exercises: tuple[Template, ...]
    answer_positions: int
    max_positions: int
    hidden_size: int
    num_layers: int
    num_heads: int
    sizes: Mapping[Family, Size]

    def problems(self, count: int, seed: int, split: Split) -> list[Problem]:
        """The first ``count`` problems of a seed."""
        exercises = self.exercises if split == "train" else ()
        return make_problems(count, seed, split, self.templates + exercises)


WORD_PROBLEMS = Task(
    name="tiny-d3llm",
    templates=TEMPLATES,
    exercises=(),
    answer_positions=256,
    max_positions=512,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    sizes=MappingProxyType({"llada": Size(4, 768), "dream": Size(2, 768)}),
)
YARDSTICK = Task(
    name="yardstick",
    templates=CHAINS,
    exercises=EXERCISES,
    answer_positions=256,
    max_positions=768,
    hidden_size=192,
    num_layers=6,
    num_heads=6,
    sizes=MappingProxyType({"llada": Size(6, 320), "dream": Size(2, 384)}),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in (WORD_PROBLEMS, YARDSTICK)})
