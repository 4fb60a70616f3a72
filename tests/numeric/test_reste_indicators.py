"""Indicators against NumPy, and what they say as the power moves."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from reste_twins import POWERS, TWINS

from reste import (
    BinaryConv2d,
    BinaryLinear,
    activation_errors,
    activation_sums,
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
    signs = np.array([TWINS[name].value(float(value)) for value in weight.ravel()])
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
    for name in ("reste", "ste", "identity", "approx_sign", "dsq", "rational"):
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


def official_error(weight, o_end):
    """The published formula, entry by entry: positive and negative parts by themselves, sign(0) = 0."""
    total = 0.0
    for value in weight.ravel().tolist():
        root = math.pow(value, 1 / o_end) if value > 0 else -math.pow(-value, 1 / o_end)
        total += (root - np.sign(value)) ** 2
    return math.sqrt(total)


@pytest.mark.parametrize("o_end", [1.0, 1.5, 3.0, 10.0])
def test_the_published_error_is_the_official_formula_whatever_power_knee_and_threshold_are_in_use(o_end):
    weight = np.random.default_rng(2).normal(0, 0.9, (6, 5, 3))
    weight[0, 0] = [1e-6, -1.6, 40.0]
    for options in ({}, {"power": 2.5}, {"knee": 0.7, "threshold": 0.8}):
        found = estimating_error(torch.from_numpy(weight), create_estimator("reste", **options), o_end)
        assert found.item() == pytest.approx(official_error(weight, o_end), rel=1e-12)


@pytest.mark.parametrize("name", ["ste", "identity", "approx_sign"])
def test_the_published_error_of_an_estimator_without_power_is_that_of_its_curve(name):
    weight, estimator = torch.linspace(-2, 2, 41), create_estimator(name)
    assert torch.equal(estimating_error(weight, estimator, 3.0), estimating_error(weight, estimator))


def test_a_weight_of_zero_counts_as_the_estimator_binarises_it():
    zero = torch.zeros(1)
    for o_end in (None, 3.0):
        assert estimating_error(zero, create_estimator("reste", zero="one"), o_end).item() == 1
        assert estimating_error(zero, create_estimator("reste", zero="zero"), o_end).item() == official_error(zero, 3)


def test_a_last_power_below_one_is_refused():
    with pytest.raises(ValueError, match=">= 1"):
        estimating_error(torch.ones(1), create_estimator("reste"), 0.5)


KINDS = ("estimating_error", "estimating_error_current", "gradient_instability")


def test_indicators_cover_layers_with_a_binary_weight_and_sum_them():
    net = Network()
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    found = collect_indicators(net, 3.0)
    assert set(found) == {f"{kind}{layer}" for kind in KINDS for layer in ("", "/conv", "/head")}
    for layer, name in (("conv", "reste"), ("head", "ste")):
        module = net.get_submodule(layer)
        weight, grad = module.weight.detach().double().numpy(), module.weight.grad.double().numpy()
        current = numpy_error(weight, name, 2.0)
        assert found[f"estimating_error_current/{layer}"].item() == pytest.approx(current, rel=1e-6)
        published = official_error(weight, 3.0) if name == "reste" else current
        assert found[f"estimating_error/{layer}"].item() == pytest.approx(published, rel=1e-6)
        instability = np.var(np.abs(grad), ddof=1)
        assert found[f"gradient_instability/{layer}"].item() == pytest.approx(instability, rel=1e-5)
    for kind in KINDS:
        assert found[kind].item() == pytest.approx(found[f"{kind}/conv"].item() + found[f"{kind}/head"].item())


def test_layers_without_a_gradient_have_no_instability():
    net = Network()
    assert set(collect_indicators(net, 3.0)) == {
        f"{kind}{layer}" for kind in KINDS[:2] for layer in ("", "/conv", "/head")
    }
    net.head.weight.grad = torch.ones_like(net.head.weight)
    found = collect_indicators(net, 3.0)
    assert found["gradient_instability"].item() == found["gradient_instability/head"].item() == 0
    assert "gradient_instability/conv" not in found


def test_a_full_precision_model_has_no_indicators():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), BinaryConv2d(2, 2, 1))
    assert collect_indicators(model, 3.0) == {}
    assert activation_errors(activation_sums(model, lambda: None, 3.0)) == {}


def test_the_current_error_follows_the_power_and_the_published_one_does_not():
    net = Network()
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    current, published = [], []
    for power in (1.0, 2.0, 3.0):
        set_power(net, power)
        found = collect_indicators(net, 3.0)
        assert not any(value.requires_grad for value in found.values())
        current.append(found["estimating_error_current"].item())
        published.append(found["estimating_error"].item())
    assert current[0] > current[1] > current[2]
    assert published[0] == published[1] == published[2]


def test_indicators_read_nothing_to_the_host():
    """On the meta device a host read is an error."""
    net = Network().to("meta")
    for parameter in net.parameters():
        parameter.grad = torch.empty_like(parameter)
    found = collect_indicators(net, 3.0)
    images = torch.empty(2, 3, 8, 8, device="meta")
    found |= activation_errors(activation_sums(net, lambda: net(images), 3.0))
    assert len(found) == 3 * 3 + 2 * 3
    assert all(value.is_meta and value.shape == () for value in found.values())


def test_activation_errors_are_root_mean_squares_over_the_inputs_of_binary_layers():
    net, images = Network(), torch.randn(3, 3, 8, 8)
    found = activation_errors(activation_sums(net, lambda: net(images), 3.0))
    inputs = {"conv": net.stem(images), "inputs": net.conv(net.stem(images))}
    totals = [0.0, 0.0]
    for layer, value in inputs.items():
        flat = value.detach().double().numpy()
        published = official_error(flat, 3.0) / math.sqrt(flat.size)
        current = numpy_error(flat, "reste", 2.0) / math.sqrt(flat.size)
        assert found[f"activation_error/{layer}"].item() == pytest.approx(published, rel=1e-5)
        assert found[f"activation_error_current/{layer}"].item() == pytest.approx(current, rel=1e-5)
        totals = [totals[0] + published, totals[1] + current]
    assert found["activation_error"].item() == pytest.approx(totals[0], rel=1e-5)
    assert found["activation_error_current"].item() == pytest.approx(totals[1], rel=1e-5)


def test_activation_sums_of_parts_add_up_to_those_of_the_whole():
    net, images = Network(), torch.randn(5, 3, 8, 8)
    whole = activation_sums(net, lambda: net(images), 3.0)
    parts = [activation_sums(net, lambda part=part: net(part), 3.0) for part in (images[:1], images[1:])]
    parts.append(activation_sums(net, lambda: None, 3.0))
    for name, sums in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), sums, rtol=1e-6, atol=0)


class Noisy(torch.nn.Module):
    """Everything that a forward pass in training leaves behind: statistics moved and random numbers drawn."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.frozen = torch.nn.BatchNorm2d(3).eval()
        self.drop = torch.nn.Dropout(0.5)
        self.conv = BinaryConv2d(3, 4, 3, activation_estimator=create_estimator("reste"))

    def forward(self, x):
        return self.conv(self.drop(self.frozen(self.norm(x))))


def test_a_look_at_the_activations_leaves_no_trace():
    net, images = Noisy(), torch.randn(4, 3, 6, 6) + 5
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    activation_sums(net, lambda: net(images), 3.0)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in net.modules()] == modes
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_a_failed_look_takes_its_hooks_along():
    net = Noisy()
    with pytest.raises(RuntimeError):
        activation_sums(net, lambda: net(torch.zeros(1, 2, 6, 6)), 3.0)
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert net.training
    assert not net.frozen.training


def test_a_look_does_not_make_a_compiled_network_compile_again():
    net, images, graphs = Network(), torch.randn(2, 3, 8, 8), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    before = compiled(images)
    count = len(graphs)
    sums = activation_sums(net, lambda: net(images), 3.0)
    assert all(sum_[2] > 0 for sum_ in sums.values())
    assert torch.equal(compiled(images), before)
    assert len(graphs) == count > 0
    torch._dynamo.reset()
