"""Schedules against hand-written values and torch's own closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from reste import cosine_power
from trainer.schedule import LearningRate, Power, constant, cosine, linear, stairs


def rate(**changes: object) -> LearningRate:
    values: dict[str, object] = {
        "peak": 0.1,
        "floor": 0.0,
        "shape": cosine,
        "warmup_steps": 0,
        "total_steps": 100,
        "steps_per_epoch": 10,
        "granularity": "step",
    }
    return LearningRate(**(values | changes))  # type: ignore[arg-type]


def test_cosine_equals_torch_over_the_whole_run() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.001)
    ours = rate(floor=0.001)
    for step in range(100):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_the_official_recipe_moves_once_an_epoch() -> None:
    # CosineAnnealingLR stepped per epoch over 250 epochs: the last rate is 3.9e-6.
    ours = rate(total_steps=250 * 4, steps_per_epoch=4, granularity="epoch")
    assert [ours(step) for step in range(4)] == [0.1] * 4
    assert ours(4) == pytest.approx(0.05 * (1 + math.cos(math.pi / 250)))
    assert ours(999) == pytest.approx(3.9e-6, rel=0.02)


def test_warm_up_rises_in_equal_steps_and_meets_the_peak() -> None:
    ours = rate(warmup_steps=4)
    assert [ours(step) for step in range(5)] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert ours(52) == pytest.approx(0.05)  # half of the 96 steps after the warm-up


def test_linear_constant_and_stairs() -> None:
    assert rate(shape=linear)(25) == pytest.approx(0.075)
    assert rate(shape=constant)(99) == 0.1
    steps = rate(shape=stairs((1 / 3, 2 / 3), 0.1), total_steps=90)
    assert [steps(s) for s in (0, 29, 30, 59, 60, 89)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_power_by_epoch_is_the_published_one_and_never_arrives() -> None:
    power = Power(end=3.0, shape=cosine_power, total_steps=2500, steps_per_epoch=10, granularity="epoch")
    published = {0: 1.0, 25: 1.0246, 125: 1.5858, 187: 2.2288, 249: 2.9874}
    for epoch, value in published.items():
        assert power(epoch * 10) == power(epoch * 10 + 9) == pytest.approx(value, abs=5e-5)


def test_power_by_step_begins_at_one_and_ends_at_its_end() -> None:
    power = Power(end=3.0, shape=cosine_power, total_steps=2500, steps_per_epoch=10, granularity="step")
    assert power(0) == 1.0
    assert power(2499) == 3.0
    values = [power(step) for step in range(2500)]
    assert values == sorted(values)
