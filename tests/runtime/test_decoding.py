"""Rules of the decoders that the golden cases do not show, and what lets a step be captured in a CUDA graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from d3llm_trt import DecodingConfig, SamplingParams
from d3llm_trt.errors import ConfigError, RequestError
from d3llm_trt.plugins import reference
from d3llm_trt.plugins.reference import UNIFORM_BITS, SampleKeys, gumbel_noise, gumbel_of_bits
from d3llm_trt.runtime.decoder import Decoder
from d3llm_trt.runtime.decoding.config import ALGORITHMS
from d3llm_trt.runtime.decoding.select import select
from d3llm_trt.runtime.decoding.step import SlotReport, TensorSizes, read_summary
from d3llm_trt.runtime.engines.base import Engine, ForwardBatch
from d3llm_trt.runtime.engines.torch_engine import TorchEngine
from d3llm_trt.runtime.stepping.stepper import Occupant
from d3llm_trt.runtime.stepping.tensor_stepper import TensorStepper, run_step, sizes_of
from tests.support.checkpoints import make_checkpoint
from tests.support.engines import cpu_engine, decode, decoder_over
from tests.support.golden_cases import GOLDEN

PROMPT = [85, 59, 324, 248]


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return cpu_engine(GOLDEN / "llada_tiny", 4)


def params(algorithm: str = "FullAttnMultiBlock", tokens: int = 40, **changes: Any) -> SamplingParams:
    own = {name: changes.pop(name) for name in ("temperature", "seed", "end_id", "ignore_eos") if name in changes}
    return SamplingParams(max_tokens=tokens, decoding=DecodingConfig(algorithm, **changes), **own)


# A step never asks the device for a value


class NoHostReads(TorchDispatchMode):
    """Fails on any operation whose result the host would have to wait for."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero.default", "masked_select", "unique", "is_nonzero", "equal.default")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = "index.Tensor" in str(func) and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not by_mask and not any(name in str(func) for name in self.FORBIDDEN), f"{func} reads from the device"
        return func(*args, **(kwargs or {}))


def test_the_guard_against_host_reads_works() -> None:
    with pytest.raises(AssertionError, match="reads from the device"), NoHostReads():
        torch.ones(3).sum().item()
    with pytest.raises(AssertionError, match="reads from the device"), NoHostReads():
        torch.ones(3)[torch.ones(3) > 0]


class Altered(TensorStepper):
    """Steps of other sizes than needed, or watched ones."""

    def __init__(
        self,
        engine: Engine,
        alter: Callable[[TensorSizes], TensorSizes] = lambda sizes: sizes,
        watch: TorchDispatchMode | None = None,
    ) -> None:
        super().__init__(engine)
        self.engine, self.alter, self.watch = engine, alter, watch or nullcontext()

    def step(self, occupants: Sequence[Occupant]) -> list[SlotReport]:
        slots = torch.tensor([occupant.slot for occupant in occupants])
        sizes = self.alter(sizes_of(occupants))
        with self.watch:
            summary = run_step(self.engine, self.state, slots, sizes)
        return read_summary(summary)


def test_a_step_reads_nothing_on_the_host(engine: TorchEngine) -> None:
    class Recorded:
        """Logits from a table, so that only the decoder's own operations are watched."""

        spec = engine.spec

        def forward(self, batch: ForwardBatch) -> torch.Tensor:
            return torch.sin(torch.arange(len(batch.logit_rows))[:, None] * torch.arange(384.0)) * 9

    decoder = Decoder(Altered(Recorded(), watch=NoHostReads()))
    requests = [params(name, temperature=0.5) for name in ALGORITHMS]
    requests[2] = params("MultiBlock", cache_delay_iter=1, refresh_interval=3)
    for slot, request in enumerate(requests):
        decoder.admit(slot, PROMPT, request)
    for _ in range(4):
        decoder.step([0, 1, 2, 3])


def test_room_to_spare_in_a_step_changes_nothing(engine: TorchEngine) -> None:
    """A graph's bucket is larger than the work in it."""

    def roomy(sizes: TensorSizes) -> TensorSizes:
        return dataclasses.replace(sizes, width=sizes.width + 9, blocks=sizes.blocks + 2, rows=sizes.rows + 5)

    requests = [(PROMPT, params(name)) for name in ALGORITHMS]
    wanted = decode(engine, requests)
    decoder = Decoder(Altered(engine, alter=roomy))
    for slot, request in enumerate(requests):
        decoder.admit(slot, *request)
    running = [0, 1, 2, 3]
    while running:
        decoder.step(running)
        running = [slot for slot in running if not decoder.reports[slot].done]
    assert [canvas for canvas, _ in decoder.read(range(4))] == [answer.canvas for answer in wanted]


# Rules


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tokens", [1, 15, 33])
def test_short_last_blocks_are_decoded(engine: TorchEngine, algorithm: str, tokens: int) -> None:
    (answer,) = decode(engine, [(PROMPT, params(algorithm, tokens, block_size=16, early_stop=False))])
    assert len(answer.canvas) == len(PROMPT) + tokens and 380 not in answer.canvas


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_early_stop_ends_behind_the_first_eos_and_saves_passes(engine: TorchEngine, algorithm: str) -> None:
    (whole,) = decode(engine, [(PROMPT, params(algorithm, 64, early_stop=False, block_size=16))])
    end_id = whole.canvas[len(PROMPT) + 10]
    (stopped,) = decode(engine, [(PROMPT, params(algorithm, 64, block_size=16, end_id=end_id))])
    generated = stopped.canvas[len(PROMPT) :]
    first = generated.index(end_id)
    assert set(generated[first:]) == {end_id}
    assert stopped.passes < whole.passes
    ignored = params(algorithm, 64, block_size=16, end_id=end_id, ignore_eos=True)
    assert decode(engine, [(PROMPT, ignored)])[0] == whole


def test_low_confidence_takes_as_many_passes_as_it_is_told(engine: TorchEngine) -> None:
    for steps in (4, 8, 64):
        (answer,) = decode(
            engine, [(PROMPT, params("LowConfidence", 64, block_size=16, steps=steps, early_stop=False))]
        )
        assert answer.passes == steps
        per_pass = [answer.commit_steps.count(number) for number in range(1, steps + 1)]
        assert per_pass == [64 // steps] * steps
    (answer,) = decode(engine, [(PROMPT, params("LowConfidence", 20, early_stop=False))])
    assert answer.passes == 20


def test_low_confidence_spreads_the_remainder_over_the_first_passes(engine: TorchEngine) -> None:
    (answer,) = decode(engine, [(PROMPT, params("LowConfidence", 16, block_size=16, steps=5, early_stop=False))])
    assert [answer.commit_steps.count(number) for number in range(1, 6)] == [4, 3, 3, 3, 3]


@pytest.mark.parametrize("steps", [3, 80])
def test_steps_that_do_not_fit_are_refused(engine: TorchEngine, steps: int) -> None:
    with pytest.raises(RequestError, match=f"steps is {steps}; allowed: multiples of 4"):
        decoder_over(engine).admit(0, PROMPT, params("LowConfidence", 64, block_size=16, steps=steps))


def test_entropy_threshold_sees_one_block_more_at_a_time(engine: TorchEngine) -> None:
    (answer,) = decode(engine, [(PROMPT, params("EntropyThreshold", 40, block_size=16, early_stop=False))])
    assert sorted(set(answer.windows)) == [len(PROMPT) + shown for shown in (16, 32, 40)]


def test_cached_windows_are_shorter_and_end_the_same_length(engine: TorchEngine) -> None:
    prompt = [*range(1, 100)]
    settings = params("MultiBlock", 64, cache_delay_iter=1, block_size=16, early_stop=False)
    (answer,) = decode(engine, [(prompt, settings)])
    assert answer.windows[0] == 163 and min(answer.windows) <= 64
    assert len(answer.canvas) == 163


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_masks_in_the_prompt_are_filled_in(engine: TorchEngine, algorithm: str) -> None:
    prompt = [85, 380, 324, 380, 380, 11]
    (answer,) = decode(engine, [(prompt, params(algorithm, 24))])
    assert 380 not in answer.canvas
    assert [answer.canvas[place] for place in (0, 2, 5)] == [85, 324, 11]
    assert [step > 0 for step in answer.commit_steps[:6]] == [False, True, False, True, True, False]


def test_a_cancelled_request_leaves_nothing_to_the_next_in_its_slot(engine: TorchEngine) -> None:
    requests = [params(tokens=tokens, block_size=tokens, early_stop=False) for tokens in (64, 16, 64)]
    wanted = decode(engine, [(PROMPT, request) for request in requests[1:]])
    decoder = decoder_over(engine)
    decoder.admit(0, PROMPT, requests[0])
    decoder.step([0])
    decoder.admit(0, PROMPT, requests[1])
    decoder.admit(1, PROMPT, requests[2])
    running = [0, 1]
    while running:
        decoder.step(running)
        running = [slot for slot in running if not decoder.reports[slot].done]
    assert decoder.read(range(2)) == [(answer.canvas, answer.commit_steps) for answer in wanted]


def test_logits_that_are_not_numbers_fail_one_request(tmp_path: Path) -> None:
    engine = cpu_engine(make_checkpoint(tmp_path, "llada", vocab=96), 3)
    healthy = decode(engine, [([1, 2], params()), ([3], params())])

    class Poisoned:
        """NaN in the rows of slot 1."""

        spec = engine.spec

        def forward(self, batch: ForwardBatch) -> torch.Tensor:
            logits = engine.forward(batch)
            rows = torch.searchsorted(batch.cu_window, batch.logit_rows, right=True) - 1
            return torch.where(batch.slots[rows][:, None] == 1, torch.nan, logits)

    decoder = decoder_over(Poisoned())
    for slot, prompt in enumerate(([1, 2], [9, 9], [3])):
        decoder.admit(slot, prompt, params())
    decoder.step([0, 1, 2])
    assert [decoder.reports[slot].failed for slot in range(3)] == [False, True, False]
    running = [0, 2]
    while running:
        decoder.step(running)
        running = [slot for slot in running if not decoder.reports[slot].done]
    assert [canvas for canvas, _ in decoder.read([0, 2])] == [answer.canvas for answer in healthy]


# Select


def keys(count: int, temperature: float = 1.0, seed: int = 7) -> SampleKeys:
    return SampleKeys(
        torch.full((count,), temperature), torch.full((count,), seed), torch.arange(count), torch.ones(count).long()
    )


def test_select_against_float64() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(50, 300, generator=generator) * 4
    logits[3, 17] = logits[3, 200] = logits[3].max() + 1
    logits[5, 9] = 50.0
    eps = torch.where(torch.arange(50) % 2 == 0, 1e-12, 1e-8)
    chosen = select(logits, 9, eps, None)
    p = logits.double().softmax(-1)
    wanted = -(p * (p + eps[:, None].double()).log()).sum(-1)
    assert (chosen.entropy - wanted).abs().max() < 1e-5
    assert int(chosen.greedy[3]) == 17
    assert 9 not in chosen.greedy.tolist()
    assert torch.allclose(chosen.confidence.double(), p.gather(1, chosen.greedy[:, None])[:, 0], atol=1e-6)


def test_sampled_tokens_follow_the_softmax_at_the_temperature() -> None:
    logits, temperature, count = torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0]), 0.7, 40_000
    chosen = select(logits.expand(count, 5), 2, torch.zeros(count), keys(count, temperature))
    allowed = logits.double().clone()
    allowed[2] = -torch.inf
    wanted = (allowed / temperature).softmax(0)
    shares = torch.bincount(chosen.sampled, minlength=5).double() / count
    assert (shares - wanted).abs().max() < 4 * (0.25 / count) ** 0.5


def test_noise_depends_on_seed_position_and_pass_only() -> None:
    whole = gumbel_noise(keys(8), 100)
    part = gumbel_noise(SampleKeys(*(getattr(keys(8), f.name)[5:6] for f in dataclasses.fields(SampleKeys))), 100)
    assert torch.equal(whole[5:6], part)
    others = [keys(8, seed=8), dataclasses.replace(keys(8), number=torch.full((8,), 2))]
    assert all(not torch.isclose(gumbel_noise(other, 100), whole).any(1).all() for other in others)
    assert whole.isfinite().all()


def test_noise_is_finite_for_all_bits() -> None:
    top = (1 << UNIFORM_BITS) - 1
    noise = gumbel_of_bits(torch.tensor([0, 1, top - 1, top]))
    assert noise.isfinite().all() and (noise.diff() > 0).all()


def test_noise_of_others_never_reaches_a_request_at_temperature_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "gumbel_noise", lambda keys, vocab: torch.full((len(keys.seed), vocab), torch.inf))
    logits = torch.tensor([[0.0, 30.0, 1.0]])
    cold = select(logits, 2, torch.zeros(1), keys(1, temperature=0.0))
    assert int(cold.sampled) == 1
    hot = select(logits, 2, torch.zeros(1), keys(1, temperature=1.0))
    assert int(hot.sampled) != 2


def test_temperature_zero_ignores_the_seed(engine: TorchEngine) -> None:
    answers = decode(engine, [(PROMPT, params(seed=seed)) for seed in (0, 1)])
    assert answers[0] == answers[1]
    sampled = decode(engine, [(PROMPT, params(seed=seed, temperature=1.0)) for seed in (0, 0, 1)])
    assert sampled[0] == sampled[1] != sampled[2]


# Settings


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"algorithm": "Magic"}, "algorithm is 'Magic'; allowed: FullAttnMultiBlock"),
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": True}, "block_size is True"),
        ({"block_size": 10**20}, "block_size is 100000000000000000000; allowed: an integer in 1.."),
        ({"threshold": 10**400}, "threshold is 1000"),
        ({"threshold": "low"}, "threshold is 'low'"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"decoded_token_threshold": 1.5}, "decoded_token_threshold is 1.5"),
        ({"cache_delay_iter": 2}, "only MultiBlock"),
        ({"algorithm": "MultiBlock", "refresh_interval": 3}, "refresh_interval needs cache_delay_iter"),
        ({"algorithm": "MultiBlock", "cache_delay_iter": -1}, "cache_delay_iter is -1"),
        ({"steps": 4}, "only LowConfidence"),
        ({"early_stop": 1}, "early_stop is 1"),
        ({"sub_block_size": 32}, "unknown key 'sub_block_size'"),
        ({"block_add": 0.1}, "unknown key 'block_add'"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        DecodingConfig.from_dict(changes)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_settings_load_from_files(tmp_path: Path, suffix: str) -> None:
    text = '{"algorithm": "MultiBlock", "threshold": 0.3, "cache_delay_iter": 2}'
    (tmp_path / f"d{suffix}").write_text(text)
    assert DecodingConfig.from_file(tmp_path / f"d{suffix}") == DecodingConfig(
        "MultiBlock", threshold=0.3, cache_delay_iter=2
    )
    (tmp_path / f"d{suffix}").write_text('{"treshold": 0.3}')
    with pytest.raises(ConfigError, match="unknown key 'treshold'"):
        DecodingConfig.from_file(tmp_path / f"d{suffix}")


def test_published_thresholds_are_the_defaults() -> None:
    assert DecodingConfig("MultiBlock").threshold_for("llada") == 0.5
    assert DecodingConfig("MultiBlock").threshold_for("dream") == 0.4
    assert DecodingConfig("FullAttnMultiBlock").threshold_for("dream") == 0.4
    assert DecodingConfig("LowConfidence").threshold_for("llada") is None
