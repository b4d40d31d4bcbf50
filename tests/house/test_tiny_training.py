"""How the tiny checkpoints are trained: packed canvases, masks, trajectories, decoders and steps."""

from __future__ import annotations

import itertools

import pytest
import torch

from d3llm_trt.model.config import FAMILIES, Family
from d3llm_trt.model.torch_ops import TorchOps, Windows, rotary_tables
from d3llm_trt.model.transformer import forward
from examples.tiny_d3llm.check import exact_rows
from examples.tiny_d3llm.data import Dataset, joined, make_dataset, training_set
from examples.tiny_d3llm.decode import Decoded, MultiBlock, decode, low_confidence
from examples.tiny_d3llm.distill import NEVER, compact, trajectory_masks
from examples.tiny_d3llm.evaluate import interval
from examples.tiny_d3llm.network import (
    all_logits,
    as_deployed,
    initial_weights,
    position_logits,
    tiny_config,
)
from examples.tiny_d3llm.optimize import optimize, orthogonal
from examples.tiny_d3llm.packing import Layout, Packer
from examples.tiny_d3llm.tasks import YARDSTICK
from examples.tiny_d3llm.train import EVEN_EVERY, diffusion_lesson, make_loss

CPU = torch.device("cpu")
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def llada() -> Dataset:
    return make_dataset(YARDSTICK, "llada", YARDSTICK.problems(40, 4, "train"))


@each_family
def test_packed_logits_are_the_networks(family: Family) -> None:
    config = tiny_config(YARDSTICK, family)
    weights = as_deployed(initial_weights(config, 0))
    lengths, ids = torch.tensor([11, 0, 7]), torch.randint(0, 500, (18,))
    layout = Layout.of(lengths, 18, 20)
    tables = rotary_tables(config, 20)
    every = all_logits(config, weights, ids, layout, tables)
    for start, length in ((0, 11), (11, 7)):
        cache = torch.zeros(config.num_layers, 1, 2, config.num_kv_heads, 20, config.head_dim)
        ops = TorchOps(config, weights, cache, Windows.whole(length), tables)
        scored = torch.arange(1, length)
        rows = scored - 1 if config.shifted_logits else scored
        wanted = forward(config, ops, ids[start : start + length], rows)
        assert torch.allclose(every[start + 1 : start + length], wanted, atol=1e-4)
        assert torch.allclose(position_logits(config, weights, ids, layout, start + scored), wanted, atol=1e-4)


def test_packs_are_full_and_count_whole_answers_once(llada: Dataset) -> None:
    pack = Packer(YARDSTICK, llada, 4096).draw()
    edges = pack.layout.edges
    assert edges[0] == 0 and edges[-1] == 4096 and len(pack.ids) == 4096
    whole = [slice(a, b) for a, b in zip(edges.tolist(), edges.tolist()[1:], strict=False) if a < b]
    for part in whole[:-1]:
        row = int(pack.rows[part][0])
        answer = int(llada.total_length[row] - llada.prompt_length[row])
        begin, ids = int(llada.start[row]), pack.ids[part]
        assert torch.equal(ids[: llada.total_length[row]], llada.ids[begin : begin + llada.total_length[row]].long())
        assert (ids[llada.total_length[row] :] == llada.eos).all() and ids[-1] == llada.eos
        assert int((pack.counts[part] == 1).sum()) == answer + 1
        assert len(ids) <= pack.layout.longest and not pack.counts[part][: llada.prompt_length[row]].any()


def test_the_diffusion_loss_masks_answers_only_and_is_unbiased(llada: Dataset) -> None:
    config, packer = tiny_config(YARDSTICK, "llada"), Packer(YARDSTICK, llada, 4096)
    counted = wanted = 0.0
    for _ in range(200):
        pack = packer.draw()
        lesson = diffusion_lesson(config, pack, (llada.total_length - llada.prompt_length)[pack.rows])
        masked = lesson.canvases == config.mask_token_id
        assert not (masked & (pack.answer < 0)).any() and not lesson.counts[~masked].any()
        one_ratio = pack.layout.canvas % EVEN_EVERY == 0
        counted += float(lesson.counts[one_ratio].sum())
        wanted += float(pack.counts[one_ratio].sum() / pack.counts.sum())
    assert 0.95 < counted / wanted < 1.05


def test_a_few_steps_lower_the_loss(llada: Dataset) -> None:
    config, packer = tiny_config(YARDSTICK, "llada"), Packer(YARDSTICK, llada, 1024)
    loss, lengths = make_loss(config, CPU), llada.total_length - llada.prompt_length
    packs = [packer.draw() for _ in range(2)]
    lessons = [diffusion_lesson(config, pack, lengths[pack.rows]) for pack in packs]
    losses: list[float] = []

    def loss_of(weights: dict[str, torch.Tensor], progress: float) -> torch.Tensor:
        value = loss(weights, lessons[len(losses) % 2])
        losses.append(value.item())
        return value

    saved: list[object] = []
    ticks = itertools.count(0.0, 15.0)  # seconds from step to step
    optimize(initial_weights(config, 0), loss_of, 150.0, 4e-3, "test", saved.append, lambda: next(ticks))
    assert len(losses) == 11 and min(losses[-2:]) < 0.8 * losses[0]
    assert len(saved) == 2


def test_steps_of_matrices_are_orthogonal() -> None:
    for shape in ((3, 8, 20), (3, 20, 8)):
        stack = torch.randn(shape) @ torch.diag(torch.logspace(-1, 1, shape[2]))
        left, _, right = torch.linalg.svd(stack, full_matrices=False)
        values = torch.linalg.svdvals(orthogonal(stack))
        assert (values > 0.3).all() and (values < 1.3).all()
        assert torch.nn.functional.cosine_similarity((left @ right).flatten(), orthogonal(stack).flatten(), 0) > 0.95


def test_trajectory_masks_hide_the_future_only() -> None:
    commit = torch.tensor([0, 0, 1, 3, 2, NEVER]).repeat(64)
    canvas, last = torch.arange(64).repeat_interleave(6), torch.full((384,), 3)
    masked, learned = (part.view(64, 6) for part in trajectory_masks(commit, last, canvas, 0.0))
    assert not masked[:, :2].any() and masked[:, 5].all()
    assert not (learned & ~masked).any() and not learned[:, 5].any()
    assert (masked[:, 3] >= masked[:, 4]).all() and (masked[:, 4] >= masked[:, 2]).all()
    assert masked[:, 3].any() and not masked[:, 2].all()


def test_trajectories_keep_the_pass_of_every_token(llada: Dataset) -> None:
    config, count = tiny_config(YARDSTICK, "llada"), 224
    places = llada.prompt_length[:, None] + torch.arange(count)
    ids = llada.tokens(torch.arange(40)[:, None], places)
    commit = torch.arange(1, count + 1).repeat(40, 1)
    commit[places > llada.total_length[:, None]] = 0
    wrong = ids.clone()
    wrong[5, 3] += 1
    assert exact_rows(config, llada, Decoded(ids, commit, commit[:, 0])).all()
    keep = exact_rows(config, llada, Decoded(wrong, commit, commit[:, 0]))
    assert keep.sum() == 39 and not keep[5]
    data = compact(llada, Decoded(wrong, commit, commit[:, 0]), keep)
    pack = Packer(YARDSTICK, joined([data.dataset]), 4096).draw()
    commits = data.commits(pack)
    inside = pack.layout.positions <= data.dataset.total_length[pack.rows]
    assert torch.equal(commits[inside], (pack.answer[inside] + 1).clamp(min=0)) and (commits[~inside] == NEVER).all()
    assert torch.equal(data.last[pack.rows], (data.dataset.total_length - data.dataset.prompt_length)[pack.rows] + 1)


@each_family
def test_decoders_fill_the_answer(family: Family) -> None:
    config, weights = tiny_config(YARDSTICK, family), initial_weights(tiny_config(YARDSTICK, family), 0)
    problems = make_dataset(YARDSTICK, family, YARDSTICK.problems(2, 1, "heldout"))
    for rule in (low_confidence(3), MultiBlock(2, 40, 5.0, CPU)):
        decoded = decode(config, weights, problems, 40, rule)
        before_end = (decoded.ids == config.eos_token_id).cumsum(1) == 0
        assert not (decoded.ids[before_end] == config.mask_token_id).any()
        assert (decoded.commit.amax(1) == decoded.passes).all()


def test_training_sets_are_the_same_for_the_same_seed() -> None:
    one, two = (training_set(YARDSTICK, "dream", 30, 3) for _ in range(2))
    assert torch.equal(one.ids, two.ids) and len(one.start) == 30
    assert not torch.equal(one.ids[:1000], training_set(YARDSTICK, "dream", 30, 4).ids[:1000])


def test_intervals_hold_the_share() -> None:
    low, high = interval(950, 1000)
    assert 0.934 < low < 0.936 and 0.961 < high < 0.963
    assert interval(10, 10)[1] == pytest.approx(1.0) and 0.69 < interval(10, 10)[0] < 0.73
