"""Indicators against NumPy, and what they say as the power moves."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from reste_twins import POWERS, TWINS

from reste import (
    BinaryConv2d,
    BinaryLinear,
    collect_indicators,
    create_estimator,
    estimating_error,
    gradient_instability,
    list_estimators,
    set_power,
)


class Network(torch.nn.Module):
    """Full precision: `stem`, `full`. Binary: `conv`, the input of `inputs`, the weight of `head`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        reste = partial(create_estimator, "reste", power=2.0)
        self.stem = torch.nn.Conv2d(3, 4, 3)
        self.conv = BinaryConv2d(4, 5, 3, weight_estimator=reste(), activation_estimator=reste())
        self.inputs = BinaryConv2d(5, 5, 1, activation_estimator=reste())
        self.full = BinaryConv2d(5, 5, 1)
        self.head = BinaryLinear(5, 2, weight_estimator=create_estimator("ste"))

    def forward(self, x):
        return self.head(self.full(self.inputs(self.conv(self.stem(x)))).mean((2, 3)))


def numpy_error(weight, name, power):
    curve = TWINS[name].curves(torch.from_numpy(weight.ravel()), power).numpy()
    signs = np.where(weight.ravel() < 0, -1.0, 1.0)
    return np.sqrt(np.sum((curve - signs) ** 2))


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("name", list_estimators())
def test_estimating_error_equals_numpy(name, power):
    weight = np.random.default_rng(0).normal(0, 0.7, (5, 4, 3, 3))
    weight[0, 0, 0, 0] = 0.0
    estimator = create_estimator(name)
    set_power(estimator, power)
    actual = estimating_error(torch.from_numpy(weight), estimator)
    assert actual.shape == ()
    assert actual.item() == pytest.approx(numpy_error(weight, name, np.float32(power).item()), rel=1e-12)


def test_estimating_error_of_signs_is_zero_and_of_a_zero_is_one():
    for name in list_estimators():
        estimator = create_estimator(name)
        assert estimating_error(torch.tensor([1.0, -1.0, 1.0]), estimator).item() == 0
        assert estimating_error(torch.zeros(1), estimator).item() == 1


def test_gradient_instability_equals_numpy():
    grad = np.random.default_rng(1).normal(size=(6, 5, 3))
    actual = gradient_instability(torch.from_numpy(grad))
    assert actual.shape == ()
    assert actual.item() == pytest.approx(np.var(np.abs(grad), ddof=1), rel=1e-12)


def test_gradient_instability_of_equal_sizes_is_zero_whatever_their_signs():
    assert gradient_instability(torch.tensor([2.0, -2.0, 2.0])).item() == 0


@pytest.mark.parametrize("count", [0, 1])
def test_gradient_instability_of_fewer_than_two_entries_is_zero(count):
    assert gradient_instability(torch.full((count,), 3.0)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_indicators_of_low_precision_are_computed_in_float32(dtype):
    """Sums of squares above 65504, float16's largest number, and more terms than bfloat16 can count."""
    tensor = torch.full((100_000,), 2.0, dtype=dtype)
    error = estimating_error(tensor, create_estimator("identity"))
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx(100_000**0.5, rel=1e-5)
    grad = torch.tensor([200.0, -600.0], dtype=dtype)
    instability = gradient_instability(grad)
    assert instability.dtype == torch.float32
    assert instability.item() == pytest.approx(np.var(grad.float().abs().numpy(), ddof=1), rel=1e-6)


def test_indicators_cover_layers_with_a_binary_weight_and_sum_them():
    net = Network()
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    found = collect_indicators(net)
    kinds = ("estimating_error", "gradient_instability")
    assert set(found) == {f"{kind}{layer}" for kind in kinds for layer in ("", "/conv", "/head")}
    for layer, name in (("conv", "reste"), ("head", "ste")):
        module = net.get_submodule(layer)
        weight, grad = module.weight.detach().double().numpy(), module.weight.grad.double().numpy()
        assert found[f"estimating_error/{layer}"].item() == pytest.approx(numpy_error(weight, name, 2.0), rel=1e-6)
        instability = np.var(np.abs(grad), ddof=1)
        assert found[f"gradient_instability/{layer}"].item() == pytest.approx(instability, rel=1e-5)
    for kind in kinds:
        assert found[kind].item() == pytest.approx(found[f"{kind}/conv"].item() + found[f"{kind}/head"].item())


def test_layers_without_a_gradient_have_no_instability():
    net = Network()
    assert set(collect_indicators(net)) == {f"estimating_error{layer}" for layer in ("", "/conv", "/head")}
    net.head.weight.grad = torch.ones_like(net.head.weight)
    found = collect_indicators(net)
    assert found["gradient_instability"].item() == found["gradient_instability/head"].item() == 0
    assert "gradient_instability/conv" not in found


def test_a_full_precision_model_has_no_indicators():
    assert collect_indicators(torch.nn.Sequential(torch.nn.Linear(2, 2), BinaryConv2d(2, 2, 1))) == {}


def test_indicators_are_constants_and_follow_the_present_power():
    net = Network()
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    totals = []
    for power in (1.0, 2.0, 3.0):
        set_power(net, power)
        found = collect_indicators(net)
        assert not any(value.requires_grad for value in found.values())
        totals.append(found["estimating_error"].item())
    assert totals[0] > totals[1] > totals[2]


def test_indicators_read_nothing_to_the_host():
    """On the meta device a host read is an error."""
    net = Network().to("meta")
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    assert all(value.is_meta and value.shape == () for value in collect_indicators(net).values())
