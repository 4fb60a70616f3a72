"""Gradient mismatch against losses whose discrete and smoothed gradients are known."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from reste import BinaryConv2d, BinaryLinear, create_estimator, gradient_mismatch


def linear(n, name="identity"):
    """One output of n binary weights, float64, no scale."""
    torch.manual_seed(3)
    return BinaryLinear(n, 1, bias=False, dtype=torch.float64, weight_estimator=create_estimator(name), scale="none")


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_the_discrete_gradient_is_that_of_signs_that_turn_within_the_step():
    layer = linear(20)
    x = torch.randn(1, 20, dtype=torch.float64)
    found = gradient_mismatch(layer, lambda: layer(x).sum(), coordinates=20, directions=0)
    weight = layer.weight[0].tolist()
    h = sum(map(abs, weight)) / len(weight)
    # L = sum_i x_i sign(w_i): the identity estimator's gradient is x, the discrete one x_i / h where |w_i| <= h.
    discrete = [value / h if abs(w) <= h else 0.0 for value, w in zip(x[0].tolist(), weight, strict=True)]
    assert 0 < sum(value == 0 for value in discrete) < 20
    assert found["discrete_cosine/"].item() == pytest.approx(cosine(x[0].tolist(), discrete), rel=1e-9)
    assert list(found) == ["discrete_cosine/"]


def test_the_smoothed_gradient_is_that_of_the_expected_sign():
    """E sign(w + h u) = erf(w / (h sqrt 2)), whose slope is 2 phi(w / h) / h."""
    layer = linear(12)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.2, 4, 12))
    x = torch.rand(1, 12, dtype=torch.float64) + 0.2
    found = gradient_mismatch(layer, lambda: layer(x).sum(), coordinates=0, directions=3000)
    weight = layer.weight[0].tolist()
    h = sum(map(abs, weight)) / len(weight)
    smooth = [value * math.exp(-((w / h) ** 2) / 2) for value, w in zip(x[0].tolist(), weight, strict=True)]
    expected = cosine(x[0].tolist(), smooth)
    assert expected < 0.95
    assert found["smoothed_cosine/"].item() == pytest.approx(expected, abs=0.05)


def net():
    torch.manual_seed(0)
    estimators = {f"{side}_estimator": create_estimator("ste") for side in ("weight", "activation")}
    return torch.nn.Sequential(
        torch.nn.BatchNorm2d(2), BinaryConv2d(2, 3, 3, **estimators), torch.nn.Flatten(), torch.nn.Linear(27, 2)
    )


def test_a_network_is_left_as_it_was_and_the_answer_is_the_same_again():
    model, x = net(), torch.randn(4, 2, 5, 5)
    before = copy.deepcopy(model.state_dict())
    first, second = (
        gradient_mismatch(model, lambda: model(x).square().mean(), coordinates=8, directions=16) for _ in range(2)
    )
    assert set(first) == {"discrete_cosine/1", "smoothed_cosine/1"}
    assert abs(first["discrete_cosine/1"]) <= 1
    assert all(torch.equal(first[name], second[name]) or first[name].isnan() for name in first)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_real_weights_behind_binary_activations_are_looked_at_and_real_layers_are_not():
    torch.manual_seed(0)
    binary = BinaryConv2d(2, 3, 3, activation_estimator=create_estimator("ste"))
    model = torch.nn.Sequential(binary, torch.nn.Flatten(), torch.nn.Linear(27, 2))
    x = torch.randn(4, 2, 5, 5)
    found = gradient_mismatch(model, lambda: model(x).square().mean(), coordinates=54, directions=0, step=1e-3)
    # The loss is a quadratic function of these weights: for a small step the difference is the gradient.
    assert found["discrete_cosine/0"].item() == pytest.approx(1, abs=1e-3)
    real = torch.nn.Sequential(BinaryConv2d(2, 3, 3), torch.nn.Flatten())
    assert gradient_mismatch(real, lambda: real(x).square().mean()) == {}


def test_a_gradient_of_zero_has_the_cosine_zero():
    layer, x = linear(6), torch.zeros(1, 6, dtype=torch.float64)
    found = gradient_mismatch(layer, lambda: layer(x).sum(), coordinates=6, directions=4)
    assert found["discrete_cosine/"].item() == 0


@pytest.mark.parametrize("given", [{"step": 0.0}, {"coordinates": -1}, {"directions": 1}])
def test_numbers_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match="step must be > 0, coordinates >= 0 and directions 0 or >= 2"):
        gradient_mismatch(linear(3), lambda: torch.zeros(()), **given)
