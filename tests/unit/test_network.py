"""From the configuration to the estimators inside the network."""

from __future__ import annotations

import warnings

import pytest

from reste import binary_layers
from trainer.config import Config
from trainer.config_schema import EstimatorConfig, ModelConfig
from trainer.network import instantiate


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
