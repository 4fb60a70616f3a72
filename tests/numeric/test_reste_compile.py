"""One compiled graph serves all values of the power, and it computes what eager mode computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from reste import (
    BinaryConv2d,
    BinaryLinear,
    create_estimator,
    list_estimators,
    reste_curve,
    reste_sign,
    set_power,
    set_progress,
)

IN_A_NETWORK = ("approx_sign", "identity", "reste", "ste")
POWERS = (1.0, 1.2, 1.9843, 2.5, 2.984, 3.0)


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def gradients(function, x, power):
    x = x.clone().requires_grad_()
    function(x, power).square().sum().backward()
    return x.grad


class Net(torch.nn.Module):
    """Two binary convolutions and a binary linear layer, each with its own estimators."""

    def __init__(self, name: str, scale: str = "after", zero: str = "one"):
        super().__init__()

        def make():
            return {f"{kind}_estimator": create_estimator(name, zero=zero) for kind in ("weight", "activation")}

        self.first = BinaryConv2d(3, 4, 3, padding=1, bias=False, scale=scale, **make())
        self.second = BinaryConv2d(4, 4, 3, padding=1, scale=scale, **make())
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = BinaryLinear(4, 2, scale=scale, **make())

    def forward(self, x):
        x = self.first(x).relu()
        x = self.norm(self.second(x) + x).relu()
        return self.head(x.mean((2, 3)))


def train_step(net, x):
    net.zero_grad()
    net(x).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


def test_one_graph_serves_all_powers_of_the_function(counter):
    compiled = torch.compile(lambda x, power: reste_sign(x, power) * x, fullgraph=True, backend=counter)
    x, power = torch.linspace(-2, 2, 101), torch.ones(())
    for value in POWERS:
        power.fill_(value)
        expected = gradients(lambda x, power: reste_sign(x, power) * x, x, power)
        assert torch.equal(gradients(compiled, x, power), expected)
    assert counter.frame_count == 1


def test_one_graph_serves_all_powers_of_the_curve(counter):
    compiled = torch.compile(reste_curve, fullgraph=True, backend=counter)
    x, power = torch.linspace(-2, 2, 101), torch.ones(())
    for value in POWERS:
        power.fill_(value)
        torch.testing.assert_close(gradients(compiled, x, power), gradients(reste_curve, x, power))
    assert counter.frame_count == 1


def test_one_graph_serves_the_schedule_of_a_whole_network(counter):
    torch.manual_seed(0)
    eager = Net("reste").double()
    inner = copy.deepcopy(eager)
    compiled = torch.compile(inner, fullgraph=True, backend=counter)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    seen = []
    for value in POWERS:
        set_power(eager, value)
        set_power(inner, value)
        expected, actual = train_step(eager, x), train_step(compiled, x)
        for name, grad in expected.items():
            torch.testing.assert_close(actual[f"_orig_mod.{name}"], grad, rtol=1e-9, atol=1e-12)
        seen.append(expected["first.weight"])
    assert counter.frame_count == 1
    change = (seen[-1] - seen[0]).norm() / seen[0].norm()
    assert change > 0.1, "the power must matter, or this test proves nothing"


def test_powers_can_be_set_through_the_compiled_wrapper(counter):
    inner = Net("reste")
    set_power(torch.compile(inner, backend=counter), 2.5)
    assert inner.first.weight_estimator.power == 2.5


@pytest.mark.parametrize(
    ("name", "scale", "zero"),
    [("reste", "before", "zero")] + [(name, "after", "one") for name in IN_A_NETWORK],
)
def test_a_network_compiles_without_graph_breaks(counter, name, scale, zero):
    torch.manual_seed(0)
    net = Net(name, scale, zero).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    expected = train_step(net, x)
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    actual = train_step(compiled, x)
    for key, grad in expected.items():
        torch.testing.assert_close(actual[f"_orig_mod.{key}"], grad, rtol=1e-9, atol=1e-12)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", sorted(set(list_estimators()) - set(IN_A_NETWORK)))
def test_one_graph_of_an_estimator_serves_a_whole_training(counter, name):
    estimators = [create_estimator(name) for _ in range(2)]
    layer = BinaryLinear(3, 2, weight_estimator=estimators[0], activation_estimator=estimators[1]).double()
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for power, progress in ((1.0, 0.0), (1.9843, 0.5), (3.0, 1.0)):
        set_power(layer, power)
        set_progress(layer, progress)
        expected, actual = train_step(layer, x), train_step(compiled, x)
        for key, grad in expected.items():
            torch.testing.assert_close(actual[f"_orig_mod.{key}"], grad, rtol=1e-9, atol=1e-12)
    assert counter.frame_count == 1
