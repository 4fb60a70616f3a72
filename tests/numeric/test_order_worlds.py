"""Global batches do not depend on how many ranks share them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from trainer.data.index import Index, Paths
from trainer.data.order import Augment, EvalOrder, Plan, TrainOrder, part
from trainer.errors import ConfigError


def index_of(n: int) -> Index:
    rng = np.random.default_rng(n)
    return Index(
        split="train",
        paths=Paths.of(f"train/{i}" for i in range(n)),
        labels=rng.integers(0, 5, n),
        heights=rng.integers(20, 500, n).astype(np.int32),
        widths=rng.integers(20, 500, n).astype(np.int32),
        bytes=np.zeros(n, np.int64),
        crc32=np.zeros(n, np.uint32),
        classes=list("abcde"),
    )


def rows(plan: Plan) -> list[tuple]:
    """Everything a plan says of each of its samples."""
    where = (
        plan.geometry.windows
        if plan.geometry.kind == "window"
        else np.hstack([plan.geometry.sizes, plan.geometry.offsets])
    )
    columns = (plan.ids, plan.labels, plan.heights, plan.widths, plan.flips)
    return [(*row, *place) for *row, place in zip(*(c.tolist() for c in columns), where.tolist(), strict=True)]


def joined(orders: Iterable[Iterable[Plan]]) -> list[tuple]:
    """Micro-batches put together again over ranks: (step, micro, counts, samples)."""
    batches = []
    for plans in zip(*orders, strict=True):
        keys = {(p.epoch, p.step, p.micro, p.global_count, p.global_batch_count) for p in plans}
        assert len(keys) == 1, "ranks disagree about the batch"
        samples = [row for plan in plans for row in rows(plan)]
        assert len(samples) == plans[0].global_count
        batches.append((*keys.pop(), samples))
    return batches


@pytest.mark.parametrize("crop", ["rrc", "pad", "none"])
def test_global_batches_are_the_same_for_one_to_four_ranks(crop: str) -> None:
    index, augment = index_of(103), Augment(32, crop=crop)

    def run(world: int) -> list[tuple]:
        return joined(
            TrainOrder(index, augment, seed=7, batch_size=24, rank=rank, world=world).plans(0, 13)
            for rank in range(world)
        )

    alone = run(1)
    assert [batch[4] for batch in alone[:5]] == [24, 24, 24, 24, 7]
    for world in (2, 3, 4):
        assert run(world) == alone


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 60),
    batch=st.integers(1, 70),
    world=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    drop_last=st.booleans(),
)
def test_every_epoch_shows_every_sample_once(
    n: int, batch: int, world: int, accumulation: int, drop_last: bool
) -> None:
    index, accumulation = index_of(n), min(accumulation, batch)

    def order(rank: int) -> TrainOrder:
        return TrainOrder(
            index, Augment(8, crop="none"), seed=1, batch_size=batch, accumulation=accumulation,
            rank=rank, world=world, drop_last=drop_last,
        )  # fmt: skip

    if drop_last and batch > n:
        with pytest.raises(ConfigError, match="no full batch"):
            order(0)
        return
    orders = [order(rank) for rank in range(world)]
    steps = orders[0].steps_per_epoch
    for epoch in range(2):
        batches = joined(o.plans(epoch * steps, (epoch + 1) * steps) for o in orders)
        assert len(batches) == steps * accumulation
        seen = [row[0] for entry in batches for row in entry[-1]]
        assert len(seen) == len(set(seen)) == (steps * batch if drop_last else n)
        assert sum(entry[3] for entry in batches) == len(seen)


def test_accumulation_cuts_the_same_global_batch() -> None:
    index, augment = index_of(50), Augment(16)

    def steps(accumulation: int, world: int) -> dict[int, list[tuple]]:
        found: dict[int, list[tuple]] = {}
        orders = (
            TrainOrder(index, augment, seed=3, batch_size=16, accumulation=accumulation, rank=r, world=world)
            for r in range(world)
        )
        for _, step, *_, samples in joined(order.plans(0, 8) for order in orders):
            found.setdefault(step, []).extend(samples)
        return found

    assert steps(3, 2) == steps(1, 1) == steps(4, 3)


def test_what_a_sample_shows_does_not_depend_on_the_batch_size() -> None:
    index, augment = index_of(40), Augment(16)

    def samples(batch_size: int) -> list[tuple]:
        order = TrainOrder(index, augment, seed=3, batch_size=batch_size)
        return [row for plan in order.plans(0, 2 * order.steps_per_epoch) for row in rows(plan)]

    assert samples(7) == samples(40) == samples(13)


def test_a_run_resumed_at_any_step_goes_on_as_if_never_stopped() -> None:
    order = TrainOrder(index_of(50), Augment(16), seed=3, batch_size=16, accumulation=2)
    whole = [rows(plan) for plan in order.plans(0, 9)]
    for step in range(10):
        again = TrainOrder(order.index, order.augment, seed=3, batch_size=16, accumulation=2)
        assert [rows(plan) for plan in again.plans(step, 9)] == whole[2 * step :]


def test_epochs_show_other_orders_crops_and_flips() -> None:
    order = TrainOrder(index_of(64), Augment(16), seed=3, batch_size=64)
    first, second = (sorted(rows(plan)) for plan in order.plans(0, 2))
    assert [row[0] for row in first] == [row[0] for row in second]
    same = sum(a == b for a, b in zip(first, second, strict=True))
    assert same < 8, "long thin images always show their centre, few others repeat"


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 100])
def test_evaluation_sees_every_sample_once_in_index_order(world: int, batch_size: int) -> None:
    index = index_of(23)
    orders = [EvalOrder(index, Augment(16), batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
    batches = joined(order.plans() for order in orders)
    assert len(batches) == orders[0].steps
    assert [row[0] for batch in batches for row in batch[-1]] == list(range(23))


def test_a_rank_may_get_nothing_of_a_small_batch() -> None:
    plans = [list(EvalOrder(index_of(5), Augment(16), batch_size=4, rank=r, world=4).plans()) for r in range(4)]
    assert [len(rank[1].ids) for rank in plans] == [0, 0, 0, 1]
    assert plans[0][1].geometry.sizes.shape == (0, 2)
    assert plans[0][1].global_count == 1


@given(st.integers(0, 50), st.integers(0, 100), st.integers(1, 9))
def test_parts_cover_a_range_without_overlap_and_differ_by_one_at_most(start: int, length: int, parts: int) -> None:
    bounds = [part(start, start + length, which, parts) for which in range(parts)]
    assert bounds[0][0] == start
    assert bounds[-1][1] == start + length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    lengths = [stop - first for first, stop in bounds]
    assert max(lengths) - min(lengths) <= 1


def test_more_micro_batches_than_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="micro-batches"):
        TrainOrder(index_of(5), Augment(16), seed=0, batch_size=2, accumulation=3)


def test_a_batch_that_its_micro_batches_do_not_divide_is_cut_into_two_sizes_and_is_whole() -> None:
    order = TrainOrder(index_of(40), Augment(image_size=8), seed=0, batch_size=15, accumulation=4)
    plans = list(order.plans(0, 3))
    sizes = [plan.global_count for plan in plans]
    assert sizes == [3, 4, 4, 4, 3, 4, 4, 4, 2, 3, 2, 3]
    assert order.micro_batch_sizes == [4, 3]
    assert [order.is_whole(plan) for plan in plans] == [True] * 8 + [False] * 4
