"""From the configuration to the estimators inside the network."""

from __future__ import annotations

import random
import warnings

import pytest
from torch import nn

from reste import binary_layers
from trainer import cadence
from trainer.config import Config
from trainer.config_schema import EstimatorConfig, ModelConfig
from trainer.network import average_weights, instantiate


def estimators(model: ModelConfig, estimator: EstimatorConfig) -> list:
    config = Config(model=model, estimator=estimator)
    layers = [layer for _, layer in binary_layers(instantiate(config, 10))]
    return [each for layer in layers for each in (layer.weight_estimator, layer.activation_estimator)]


@pytest.mark.parametrize(
    ("numerics", "chosen", "expected"),
    [
        ("default", None, True),
        ("reference", None, False),
        ("default", False, False),
        ("reference", True, True),
    ],
)
def test_the_slope_is_normalised_unless_the_official_arithmetic_or_the_user_says_otherwise(numerics, chosen, expected):
    found = estimators(ModelConfig(name="resnet20_1w1a", numerics=numerics), EstimatorConfig(normalize=chosen))
    assert len(found) == 36
    assert {each.normalize for each in found} == {expected}


def test_an_estimator_without_the_option_says_so_only_if_it_was_asked_for():
    model = ModelConfig(name="resnet20_1w1a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimators(model, EstimatorConfig(name="ste"))
    with pytest.warns(UserWarning, match="estimator.normalize has no effect: ste has no such option"):
        estimators(model, EstimatorConfig(name="ste", normalize=True))


@pytest.mark.parametrize(("span", "decay"), [("4", 0.75), ("0.5ep", 1 - 1 / 22), ("1%", 1 - 1 / 18), (0.9, 0.9)])
def test_a_moving_average_reaches_back_over_its_span(span, decay):
    assert cadence.decay(span, steps_per_epoch=45, total_steps=1800) == pytest.approx(decay)


def test_a_moving_average_is_the_plain_mean_until_its_span_is_full():
    network, draw = nn.Linear(1, 1, bias=False), random.Random(3)
    average = average_weights(network, 1 - 1 / 4)
    seen: list[float] = []
    for step in range(1, 12):
        seen.append(draw.gauss(0, 1))
        nn.init.constant_(network.weight, seen[-1])
        average.update(network, step)
        # Each later step takes a quarter of what there is.
        shares = [0.25 * 0.75**age for age in range(step - 4)] + [0.75 ** max(step - 4, 0) / min(step, 4)] * min(
            step, 4
        )
        expected = sum(share * value for share, value in zip(shares, reversed(seen), strict=True))
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
