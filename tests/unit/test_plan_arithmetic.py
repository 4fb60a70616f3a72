"""The arithmetic of `reste plan`: numbers worked out by hand, and what must hold of every prediction."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from trainer.errors import ConfigError
from trainer.plan.network import Fabric, Link, all_gather_s, all_reduce_s, ring_s, tree_s
from trainer.plan.predict import (
    Assumptions,
    Workload,
    batchnorm_exchange_s,
    exposed_gradients_s,
    needed_rate,
    predict,
)
from trainer.plan.rate import Point, Rate

NO_LATENCY = Fabric(Link(0, 400e9), Link(0, 50e9), per_node=8)
FABRIC = Fabric(Link(2e-6, 400e9), Link(5e-6, 50e9), per_node=8)
GRADIENTS = 46.8e6
IMAGENET = Workload(
    gradient_bytes=GRADIENTS,
    channels=(64,) * 5 + (128,) * 5 + (256,) * 5 + (512,) * 5,
    least_images=1,
    train_images=1_281_167,
    val_images=50_000,
    epochs=250,
    evaluations=250,
    batch_size=2048,
    accumulation=1,
    drop_last=False,
    bytes_per_image=115_000,
)
BELIEVED = Assumptions(FABRIC)
RATE = Rate(((128, 128 / 12_000),), fixed_s=1e-3)


def test_all_reduces_take_what_a_calculator_says() -> None:
    # 2 (n - 1) / n S / B: 2 * 7 / 8 * 46.8 MB / 400 GB/s, and 2 * 63 / 64 * 46.8 MB / 50 GB/s.
    assert ring_s(8, GRADIENTS, NO_LATENCY) == pytest.approx(0.20475e-3)
    assert ring_s(64, GRADIENTS, NO_LATENCY) == pytest.approx(1.84275e-3)
    # 14 messages of 2 us; 126 of 5 us; along 7 ranks and over 3 levels of nodes, there and back.
    assert ring_s(8, 0, FABRIC) == pytest.approx(28e-6)
    assert ring_s(64, 0, FABRIC) == pytest.approx(630e-6)
    assert tree_s(64, 0, FABRIC) == pytest.approx(2 * (7 * 2 + 3 * 5) * 1e-6)
    assert all_reduce_s(64, 0, FABRIC) == tree_s(64, 0, FABRIC)
    assert all_reduce_s(64, 0, FABRIC, "ring") == ring_s(64, 0, FABRIC)
    # 3 messages of 1000 bytes.
    assert all_gather_s(4, 1000, FABRIC) == pytest.approx(3 * (2e-6 + 2.5e-9))
    assert all_gather_s(1, 1000, FABRIC) == 0
    assert all_reduce_s(1, 1000, FABRIC) == 0
    # Whatever a collective is, 6 us more of it; none of one rank.
    late = replace(FABRIC, start_s=6e-6)
    assert all_reduce_s(64, 0, late, "ring") == pytest.approx(636e-6)
    assert all_reduce_s(64, 0, late) == pytest.approx(tree_s(64, 0, FABRIC) + 6e-6)
    assert all_gather_s(4, 1000, late) == pytest.approx(6e-6 + 3 * (2e-6 + 2.5e-9))
    assert all_gather_s(1, 1000, late) == all_reduce_s(1, 1000, late) == 0


def test_batch_norm_has_two_collectives_a_layer_none_alone_and_other_ones_in_large_groups() -> None:
    quick = Assumptions(Fabric(Link(3e-6, 1e18), Link(7e-6, 1e18), per_node=8))
    assert batchnorm_exchange_s((64, 128), 1, quick) == 0
    assert batchnorm_exchange_s((64, 128), 4, quick) == pytest.approx(2 * 2 * 3 * 3e-6)
    # 16 ranks on two nodes: a gather around the ring; for the sums a tree, 7 ranks and one level, there and back.
    assert batchnorm_exchange_s((64,), 16, quick) == pytest.approx(15 * 7e-6 + 2 * (7 * 3e-6 + 7e-6))
    # (1 + 2 C) and 2 C float32 values of each other rank.
    slow = Assumptions(Fabric(Link(0, 1e3), Link(0, 1e3), per_node=8))
    assert batchnorm_exchange_s((10,), 3, slow) == pytest.approx((2 * 4 * 21 + 2 * 4 * 20) / 1e3)


def test_gradients_hide_behind_the_backward_pass_but_for_the_last_bucket() -> None:
    believed = Assumptions(Fabric(Link(0, 1e9), Link(0, 1e9), per_node=8), bucket_bytes=10e6, overlap=0.5)
    # 25 MB on two ranks are buckets of 10, 10 and 5 MB: 10, 10 and 5 ms.
    assert exposed_gradients_s(25e6, 2, 0.0, believed) == pytest.approx(25e-3)
    assert exposed_gradients_s(25e6, 2, 16e-3, believed) == pytest.approx(17e-3)
    assert exposed_gradients_s(25e6, 2, 1.0, believed) == pytest.approx(5e-3)


def test_a_run_on_one_device_is_counted_by_hand() -> None:
    # 100 images at 10 a second, batches of 10; 3 epochs; an evaluation of 40 images is a third of the work.
    work = replace(IMAGENET, train_images=100, val_images=40, epochs=3, evaluations=3, batch_size=10)
    found = predict(work, Rate(((10, 1.0),)), replace(BELIEVED, price_per_hour=7.2), 1)
    assert (found.step_s, found.batchnorm_s, found.gradients_s) == (1.0, 0.0, 0.0)
    assert found.epoch_s == pytest.approx(10)
    assert found.run_s == pytest.approx(30 + 3 * 40 / 10 / 3)
    assert found.efficiency == pytest.approx(1)
    assert found.bytes_per_s == pytest.approx(1.15e6)
    assert found.cost == pytest.approx(34 / 3600 * 7.2)
    assert predict(replace(work, batch_size=30), Rate(((10, 1.0),)), BELIEVED, 1).epoch_s == pytest.approx(10)
    dropped = replace(work, batch_size=30, drop_last=True)
    assert predict(dropped, Rate(((10, 1.0),)), BELIEVED, 1).epoch_s == pytest.approx(9)
    halves = predict(replace(work, accumulation=2), Rate(((10, 1.0),), fixed_s=0.2), BELIEVED, 1)
    assert halves.step_s == pytest.approx(2 * 0.6)


def test_a_loader_that_is_slower_sets_the_pace() -> None:
    slow = replace(BELIEVED, loader_images_per_s=1000.0)
    found = predict(IMAGENET, RATE, slow, 8)
    assert found.images_per_s == pytest.approx(8000)
    assert found.loader_s == pytest.approx(found.step_s - found.compute_s - found.batchnorm_s - found.gradients_s)


def test_times_between_measurements_lie_on_lines_and_a_rate_never_exceeds_the_best() -> None:
    rate = Rate.of([Point(images=64, images_per_s=640), Point(images=16, images_per_s=400)], fixed_s=0.5)
    # 0.04 s at 16 and 0.1 s at 64 images: 1.25 ms an image, 20 ms fixed.
    assert rate.fixed_s == pytest.approx(0.02)
    assert [rate.step_s(n) for n in (8, 16, 40, 64, 128)] == pytest.approx([0.03, 0.04, 0.07, 0.1, 0.2])
    assert rate.best == pytest.approx(640)
    assert rate.faster(2).step_s(40) == pytest.approx(0.035)
    with pytest.raises(ConfigError, match="--fixed-ms"):
        Rate.of([Point(images=10, images_per_s=1000)], fixed_s=0.01)


def test_the_needed_rate_is_just_enough() -> None:
    needed = needed_rate(IMAGENET, RATE, BELIEVED, 8, within_s=3600)
    assert needed is not None
    # 250 * 1,281,167 images in an hour on 8 devices are 11,121 a second each, without any loss.
    assert 11_121 < needed < 11_600
    assert predict(IMAGENET, RATE.faster(needed / RATE.best), BELIEVED, 8).run_s == pytest.approx(3600)
    assert needed_rate(IMAGENET, RATE, BELIEVED, 2048, within_s=1, group=2048) is None


works = st.builds(
    Workload,
    gradient_bytes=st.floats(1e3, 1e9),
    channels=st.lists(st.integers(1, 2048), max_size=60).map(tuple),
    least_images=st.just(1),
    train_images=st.integers(5_000, 10**7),
    val_images=st.integers(1, 10**5),
    epochs=st.floats(0.1, 500),
    evaluations=st.integers(0, 500),
    batch_size=st.integers(64, 4096),
    accumulation=st.integers(1, 4),
    drop_last=st.booleans(),
    bytes_per_image=st.floats(1, 1e7),
)
links = st.builds(Link, latency_s=st.floats(0, 1e-3), bytes_per_s=st.floats(1e6, 1e12))
believed = st.builds(
    Assumptions,
    fabric=st.builds(Fabric, inside=links, between=links, per_node=st.sampled_from([1, 4, 8])),
    algorithm=st.sampled_from(["best", "ring", "tree"]),
    overlap=st.floats(0, 1),
)
rates = st.lists(st.builds(Point, images=st.integers(1, 512), images_per_s=st.floats(1, 1e5)), min_size=1, max_size=4)


@settings(max_examples=200)
@given(works, rates, believed, st.integers(0, 6), st.integers(0, 6))
def test_no_prediction_beats_computing_alone_and_worse_machines_are_never_faster(
    work: Workload, points: list[Point], given: Assumptions, gpus: int, group: int
) -> None:
    rate = Rate.of(points, fixed_s=0.0)
    many, shared = 2**gpus, 2 ** min(gpus, group)
    found = predict(work, rate, given, many, shared)
    assert found.step_s >= work.batch_size / (many * rate.best) * (1 - 1e-9)
    assert found.efficiency <= 1 + 1e-9
    assert found.step_s == pytest.approx(
        found.compute_s + found.batchnorm_s + found.gradients_s + found.loader_s, rel=1e-9
    )
    assert found.run_s >= work.epochs * found.epoch_s
    worse = {
        "overlap": replace(given, overlap=0.0),
        "latency": replace(given, fabric=replace(given.fabric, inside=slower(given.fabric.inside))),
        "loader": replace(given, loader_images_per_s=1.0),
    }
    for what, machine in worse.items():
        assert predict(work, rate, machine, many, shared).step_s >= found.step_s * (1 - 1e-9), what
    assert predict(work, rate.faster(0.5), given, many, shared).step_s >= found.step_s * (1 - 1e-9)
    assert predict(work, rate, given, many, 1).step_s <= found.step_s * (1 + 1e-9)


def slower(link: Link) -> Link:
    return Link(link.latency_s * 2 + 1e-6, link.bytes_per_s / 2)


@given(rates, st.integers(1, 600), st.integers(1, 600))
def test_more_images_never_take_less_time(points: list[Point], one: int, other: int) -> None:
    rate = Rate.of(points, fixed_s=0.0)
    few, many = sorted((one, other))
    assert rate.step_s(few) <= rate.step_s(many) * (1 + 1e-12)
    assert few / rate.step_s(few) <= rate.best * (1 + 1e-12)
