"""Any estimator with any quantiser, scaling and backbone trains: a step of each pair, in float64 and on the CPU."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from method_pairs import METHODS, pairs

from reste import binary_layers, set_power, set_progress
from trainer.config import Config, load_config
from trainer.errors import ConfigError
from trainer.network import instantiate
from trainer.optim import parameter_roles
from trainer.study.sweep import written

ROWS = pairs(METHODS)
NO_WEIGHTS = ("heaviside", "ternary_duo")


def configured(row: dict[str, object]) -> Config:
    return load_config(None, list(written(row)))


def test_the_rows_hold_every_pair() -> None:
    for (first, ones), (second, others) in itertools.combinations(METHODS.items(), 2):
        held = {(row[first], row[second]) for row in ROWS}
        assert held == set(itertools.product(ones, others)), (first, second)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(str(value) for value in row.values()))
def test_a_step_moves_every_parameter_and_stays_finite(row: dict[str, object]) -> None:
    torch.manual_seed(0)
    if row["estimator.name"] in NO_WEIGHTS and row["estimator.weights"] is None:
        with pytest.raises(ConfigError, match="has no negative value, which weights need: give them another"):
            instantiate(configured(row), 4)
        return
    model = instantiate(configured(row), 4).double()
    images, labels = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.arange(2)
    set_power(model, 1.5)
    set_progress(model, 0.5)
    layers = dict(binary_layers(model))
    assert layers
    assert {id(p) for p in model.parameters()} >= {id(layer.weight) for layer in layers.values()}
    assert set(parameter_roles(model)) == {name for name, _ in model.named_parameters()}
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    moved = [name for name, layer in layers.items() if layer.weight.grad.any()]
    assert moved == list(layers), "a binary layer that no gradient reaches cannot learn"
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(images), model(images)), "an evaluation draws nothing"


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("quantizer.weight", "shift", "quantizer 'shift' cannot be put on the weight: use "),
        ("quantizer.activation", "recu", "quantizer 'recu' cannot be put on the activation: use "),
        ("quantizer.scaling", "chanel", "unknown scaling 'chanel'; did you mean 'channel'?"),
        ("estimator.weights", "stee", "unknown estimator 'stee'; did you mean 'ste'?"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(key: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        instantiate(configured({"model.name": "resnet20_1w1a", key: name}), 4)
    assert "\n" not in str(caught.value)
