"""Running statistics that slow down, against batch norms whose momentum is set by hand for every batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainer.config import load_config
from trainer.running_statistics import RunningStatistics
from trainer.schedule import statistics_share

SHARES = (1.0, 0.7, 0.25, 0.2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(180)).double()


def test_a_share_of_the_step_is_a_smaller_momentum() -> None:
    ours = network()
    theirs = copy.deepcopy(ours)
    statistics = RunningStatistics(ours, lambda step: SHARES[step])
    for step, share in enumerate(SHARES):
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        statistics.begin(step)
        a = ours(images)
        statistics.end(step)
        for norm in (theirs[1], theirs[4]):
            norm.momentum = 0.1 * share
        b = theirs(images)
        assert torch.equal(a, b)
    for name, expected in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), expected, rtol=1e-12, atol=0)
    assert not torch.allclose(ours[1].running_mean, network()[1].running_mean)


def test_a_batch_norm_without_running_statistics_has_none_to_slow() -> None:
    model = nn.BatchNorm2d(3, track_running_stats=False)
    images = torch.randn(2, 3, 4, 4)
    statistics = RunningStatistics(model, lambda step: 0.5)
    statistics.begin(0)
    normalised = model(images)
    statistics.end(0)
    mean, variance = images.mean((0, 2, 3), keepdim=True), images.var((0, 2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(normalised, (images - mean) / (variance + model.eps).sqrt())
    assert not list(model.buffers())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [1.0, 0.5, 0.2]),
        (["optim.warmup=2ep"], [1.0, 0.75, 0.2]),
        (["optim.schedule=constant"], [1.0, 1.0, 1.0]),
        (["batchnorm.momentum=fixed"], [1.0, 1.0, 1.0]),
        (["model.numerics=reference"], [1.0, 1.0, 1.0]),
        (["model.numerics=reference", "batchnorm.momentum=decay"], [1.0, 0.5, 0.2]),
    ],
)
def test_the_share_follows_the_learning_rate(overrides: list[str], expected: list[float]) -> None:
    """Steps 0, half of the way, the last; cosine at a half is a half, after two epochs of warm-up cos^2(pi/6)."""
    share = statistics_share(load_config(None, ["train.epochs=8", *overrides]), steps_per_epoch=100)
    assert [share(step) for step in (0, 400, 799)] == pytest.approx(expected)


@pytest.mark.parametrize(("epochs", "least"), [(40, 0.2), (20, 5 / 24), (8, 25 / 48), (2, 1.0)])
def test_a_short_training_is_not_averaged_over_more_than_a_tenth_of_it(epochs: int, least: float) -> None:
    """50 steps of 192 cost six points of top-1; epochs are of 24 steps."""
    share = statistics_share(load_config(None, [f"train.epochs={epochs}"]), steps_per_epoch=24)
    found = min(share(step) for step in range(24 * epochs))
    assert found == pytest.approx(least)
    steps_looked_back_on = 1 / (found * 0.1)
    assert steps_looked_back_on <= max(2.4 * epochs, 10) + 1e-9
