"""Schedules against hand-written values and torch's own closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from reste import cosine_power
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.schedule import (
    LearningRate,
    Power,
    Progress,
    ReferenceRate,
    constant,
    cosine,
    learning_rate,
    linear,
    stairs,
)


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


def official_rates(epochs: int, *, warm_up: bool) -> list[float]:
    """The rate of every epoch as the official code gets it: torch's scheduler, started four epochs early."""
    group = {"params": [torch.nn.Parameter(torch.zeros(1))], "initial_lr": 0.1}
    optimizer = torch.optim.SGD([group], lr=0.1, momentum=0.9)
    early = 4 if warm_up else 0
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs - early, last_epoch=-1 - early)
    rates = []
    for epoch in range(epochs):
        if warm_up and epoch < 5:
            optimizer.param_groups[0]["lr"] = 0.1 * (epoch + 1) / 5
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if epoch >= early:
            scheduler.step()
    return rates


@pytest.mark.parametrize("epochs", [20, 250, 1000])
@pytest.mark.parametrize("warm_up", [False, True])
def test_the_reference_rate_is_the_official_one_in_every_epoch(epochs: int, warm_up: bool) -> None:
    ours = ReferenceRate(peak=0.1, epochs=epochs, warmup=5 if warm_up else 0, steps_per_epoch=3)
    expected = official_rates(epochs, warm_up=warm_up)
    for offset in (0, 2):
        assert [ours(3 * e + offset) for e in range(epochs)] == pytest.approx(expected, rel=1e-12, abs=1e-15)
    if warm_up:
        assert max(expected) == expected[8] > 0.1


@pytest.mark.parametrize("warmup", ["0.5ep", "7", "6ep"])
def test_the_reference_rate_refuses_a_warm_up_that_it_cannot_have(tmp_path: Path, warmup: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"train: {{epochs: 10}}\noptim: {{schedule: reference, warmup: {warmup}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="give whole epochs"):
        learning_rate(load_config(path), 10)


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
    power = Power(3.0, cosine_power, Progress(2500, 10, "epoch"))
    published = {0: 1.0, 25: 1.0246, 125: 1.5858, 187: 2.2288, 249: 2.9874}
    for epoch, value in published.items():
        assert power(epoch * 10) == power(epoch * 10 + 9) == pytest.approx(value, abs=5e-5)


def test_power_by_step_begins_at_one_and_ends_at_its_end() -> None:
    power = Power(3.0, cosine_power, Progress(2500, 10, "step"))
    assert power(0) == 1.0
    assert power(2499) == 3.0
    values = [power(step) for step in range(2500)]
    assert values == sorted(values)
