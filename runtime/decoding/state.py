"""The decoding state of all slots, on the device: one row per slot, read and written by tensor code only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor

from d3llm_trt.errors import RequestError
from d3llm_trt.model.config import Family, ModelConfig
from d3llm_trt.plugins.reference import COARSE_EPS, FINE_EPS
from d3llm_trt.plugins.state_fields import END_IDS, RequestProgress, RequestSettings, dtype_of, extent_of, shape_of
from d3llm_trt.runtime.decoding.config import ALGORITHMS, LARGEST
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams

NO_TOKEN = -1  # matches no id on a canvas
NO_PASS = -1
GIVEN, MASKED = -1, 0  # in commit_steps; the number of a pass otherwise

Part = TypeVar("Part", RequestSettings, RequestProgress)


@dataclass(frozen=True)
class DecodingState:
    """Settings and progress of ``slots`` requests of up to ``max_seq_len`` positions."""

    settings: RequestSettings
    progress: RequestProgress

    @classmethod
    def empty(cls, slots: int, max_seq_len: int, device: torch.device) -> DecodingState:
        """A state whose slots are all free."""

        def zeros(kind: type[Part]) -> Part:
            shapes = {item: shape_of(item, slots, max_seq_len) for item in fields(kind)}
            return kind(
                **{item.name: torch.zeros(shapes[item], dtype=dtype_of(item), device=device) for item in shapes}
            )

        return cls(zeros(RequestSettings), zeros(RequestProgress))

    def clone(self) -> DecodingState:
        """A copy that does not change with this one."""
        return DecodingState(_mapped(self.settings, Tensor.clone), _mapped(self.progress, Tensor.clone))

    def take(self, slots: Tensor, width: int, blocks: int) -> tuple[RequestSettings, RequestProgress]:
        """Copies of the rows ``slots[B]``, of the first ``width`` positions and the first ``blocks`` blocks."""
        views = self._views(width, blocks)
        return _mapped(self.settings, lambda rows: rows[slots]), _mapped(views, lambda rows: rows[slots])

    def put(self, slots: Tensor, progress: RequestProgress) -> None:
        """Write back the progress that :meth:`take` gave, after a pass has changed it."""
        views = self._views(progress.canvas.shape[1], progress.active.shape[1])
        for item in fields(views):
            getattr(views, item.name).index_copy_(0, slots, getattr(progress, item.name))

    def _views(self, width: int, blocks: int) -> RequestProgress:
        cuts = {"position": width, "block": blocks}
        views = {item.name: getattr(self.progress, item.name) for item in fields(RequestProgress)}
        for item in fields(RequestProgress):
            if (extent := extent_of(item)) in cuts:
                views[item.name] = views[item.name][:, : cuts[extent]]
        return RequestProgress(**views)

    def admit(self, slot: int, settings: RequestSettings, progress: RequestProgress) -> None:
        """Put a new request, one row as :func:`new_request` makes it, into a free slot."""
        for mine, new in ((self.settings, settings), (self.progress, progress)):
            for item in fields(mine):
                row, value = getattr(mine, item.name)[slot], getattr(new, item.name)[0]
                if value.ndim > 0:
                    # What a cancelled request left behind the end would be candidates beside a longer request.
                    row.zero_()
                    row = row[: len(value)]
                row.copy_(value)

    def restore(self, other: DecodingState) -> None:
        """Take over the progress of ``other``, in place."""
        for item in fields(RequestProgress):
            getattr(self.progress, item.name).copy_(getattr(other.progress, item.name))

    def same_progress(self, other: DecodingState) -> bool:
        """Whether every value of the progress is that of ``other``; waits for the device."""
        names = (item.name for item in fields(RequestProgress))
        return all(_same(getattr(self.progress, name), getattr(other.progress, name)) for name in names)


def _same(values: Tensor, others: Tensor) -> bool:
    """Whether all values are the same, NaN too."""
    if values.is_floating_point():
        values, others = values.nan_to_num(nan=torch.inf), others.nan_to_num(nan=torch.inf)
    return torch.equal(values, others)


def _mapped(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    return type(part)(**{item.name: change(getattr(part, item.name)) for item in fields(part)})


def new_request(
    config: ModelConfig, prompt_token_ids: Sequence[int], params: SamplingParams
) -> tuple[RequestSettings, RequestProgress]:
    """One row of settings and progress on the CPU: the prompt, then ``max_tokens`` masks.

    A seed that is None counts as 0. Raises RequestError where settings do not fit each other, the model or the length
    of the answer.
    """
    prompt, decoding, family = len(prompt_token_ids), params.decoding, config.family
    blocks = decoding.num_blocks(params.num_tokens)
    threshold = decoding.threshold_for(family)
    ends = end_ids_of(config, params)
    filling = config.eos_token_id if params.end_id is None else params.end_id
    settings = _one_row(
        RequestSettings,
        algorithm=ALGORITHMS.index(decoding.algorithm),
        prompt_length=prompt,
        length=prompt + params.num_tokens,
        block_size=decoding.block_size,
        num_blocks=blocks,
        eos_id=filling if decoding.early_stop and ends else NO_TOKEN,
        end_ids=[*ends, *[NO_TOKEN] * (END_IDS - len(ends))],
        min_tokens=params.min_tokens,
        threshold=math.inf if threshold is None else threshold,
        by_quota=decoding.algorithm == "LowConfidence" and threshold is None,
        entropy_eps=_entropy_eps(decoding.algorithm, family),
        block_add_threshold=decoding.block_add_threshold,
        decoded_token_threshold=decoding.decoded_token_threshold,
        cached=decoding.cache_delay_iter is not None,
        cache_delay=decoding.cache_delay_iter or 0,
        refresh_interval=decoding.refresh_interval or 0,
        full_settling=decoding.full_settling,
        window_ahead=-1 if decoding.window_ahead is None else decoding.window_ahead,
        published_shift=decoding.published_shift,
        steps_per_block=decoding.steps_per_block(params.num_tokens),
        temperature=params.temperature,
        top_k=max(0, min(params.top_k, LARGEST)),
        top_p=params.top_p,
        seed=params.seed or 0,
    )
    canvas = [*prompt_token_ids, *[config.mask_token_id] * params.num_tokens]
    return settings, _new_progress(config, canvas, prompt, blocks)


def end_ids_of(config: ModelConfig, params: SamplingParams) -> tuple[int, ...]:
    """What ends the answer of a request: the model's end ids or the one that replaces them, and those it adds.

    Raises RequestError if there are more than the state holds.
    """
    own = config.end_token_ids if params.end_id is None else (params.end_id,)
    ids = tuple(dict.fromkeys([*(() if params.ignore_eos else own), *params.stop_token_ids]))
    if len(ids) > END_IDS:
        raise RequestError(
            f"the end ids {[*own]} and stop_token_ids {[*params.stop_token_ids]} are {len(ids)} ids; allowed: at most "
            f"{END_IDS} together; leave some out, or replace the first ones by end_id"
        )
    return ids


def _entropy_eps(algorithm: str, family: Family) -> float:
    coarse = algorithm == "EntropyThreshold" or (algorithm == "LowConfidence" and family == "dream")
    return COARSE_EPS if coarse else FINE_EPS


def _new_progress(config: ModelConfig, canvas: Sequence[int], prompt: int, blocks: int) -> RequestProgress:
    masked = [token_id == config.mask_token_id for token_id in canvas]
    behind_first = [False] * (blocks - 1)
    prompt_done = NO_PASS if any(masked[:prompt]) else 0
    return _one_row(
        RequestProgress,
        canvas=canvas,
        commit_steps=[MASKED if mask else GIVEN for mask in masked],
        logprobs=[0.0] * len(canvas),
        candidates=[False] * len(canvas),
        active=[True, True, *behind_first],
        block_cached=[False] * (blocks + 1),
        done_pass=[prompt_done, *[NO_PASS] * blocks],
        opened=1,
        opened_pass=0,
        window_start=0,
        window_end=len(canvas),
        live_length=len(canvas),
        cache_length=0,
        passes=0,
        done=False,
        failed=False,
    )


def _one_row(kind: type[Part], **values: object) -> Part:
    """One request's fields from plain numbers and lists of them."""
    return kind(**{item.name: torch.tensor([values[item.name]], dtype=dtype_of(item)) for item in fields(kind)})
