"""What the backward pass does, against the autograd of the curve and against a second formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reste_twins import POWERS, TWINS, points_off_corners

from reste import (
    approx_sign,
    create_estimator,
    identity_sign,
    list_estimators,
    reste_curve,
    reste_sign,
    reste_slope,
    set_power,
    ste_sign,
)

CASES = [(name, power) for name in sorted(TWINS) for power in (POWERS if TWINS[name].has_power else (1.0,))]


def estimator_at(name: str, power: float):
    estimator = create_estimator(name)
    set_power(estimator, power)
    if estimator.has_power:
        # The buffer is float32 on purpose; what it cannot hold would show here as errors of 1e-8.
        estimator.power = torch.tensor(power, dtype=torch.float64)
    return estimator


def backward(function, x, grad=None):
    """d function / dx at x, times `grad` (ones unless given)."""
    x = x.clone().requires_grad_()
    out = function(x)
    (result,) = torch.autograd.grad(out, x, torch.ones_like(out) if grad is None else grad)
    return result


def test_every_registered_estimator_has_a_twin():
    assert set(TWINS) == set(list_estimators())


@pytest.mark.parametrize(("name", "power"), CASES)
def test_backward_is_the_autograd_of_an_independent_curve(name, power):
    x = points_off_corners(TWINS[name])
    expected = backward(lambda x: TWINS[name].curves(x, power), x)
    torch.testing.assert_close(backward(estimator_at(name, power), x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "power"), CASES)
def test_backward_is_an_independent_slope(name, power):
    x = points_off_corners(TWINS[name], seed=1)
    actual = backward(estimator_at(name, power), x).numpy()
    np.testing.assert_allclose(actual, TWINS[name].slopes(x.numpy(), power), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "power"), CASES)
def test_backward_is_the_autograd_of_the_estimators_own_curve_at_the_corners_too(name, power):
    estimator = estimator_at(name, power)
    corners = torch.tensor([0.0, *TWINS[name].corners], dtype=torch.float64)
    x = torch.cat([corners, -corners, points_off_corners(TWINS[name], seed=2)])
    torch.testing.assert_close(backward(estimator, x), backward(estimator.curve, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "power"), CASES)
def test_curve_is_an_independent_curve(name, power):
    x = points_off_corners(TWINS[name], seed=3)
    expected = TWINS[name].curves(x, power)
    torch.testing.assert_close(estimator_at(name, power).curve(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(TWINS))
def test_the_incoming_gradient_is_multiplied_entry_by_entry(name):
    estimator = estimator_at(name, 2.0)
    x = points_off_corners(TWINS[name], seed=4)
    grad = torch.linspace(-3, 3, len(x), dtype=torch.float64)
    assert torch.equal(backward(estimator, x, grad), grad * backward(estimator, x))


@pytest.mark.parametrize("name", sorted(TWINS))
def test_the_curve_has_no_jumps_and_is_odd_where_it_should_be(name):
    estimator = estimator_at(name, 3.0)
    x = torch.linspace(0, 2, 50_001, dtype=torch.float64)
    y, other = estimator.curve(x), estimator.curve(-x)
    assert torch.equal(other, -y) == TWINS[name].odd
    for values in (y, other):
        assert values.diff().abs().max() <= 1.001 * TWINS[name].steepest * 4e-5


# x, then the slope at o = 1, 2, 3: the plateau, just outside it, and three places on the root.
SLOPES = [
    (0.0, 1.0, 3.1623, 4.6416),
    (0.05, 1.0, 3.1623, 4.6416),
    (0.1001, 1.0, 1.5803, 1.5462),
    (0.5, 1.0, 0.7071, 0.5291),
    (1.0, 1.0, 0.5, 0.3333),
    (1.5, 1.0, 0.4082, 0.2544),
    (1.5001, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("x", "one", "two", "three"), SLOPES)
def test_published_values_of_the_slope(x, one, two, three):
    both = torch.tensor([x, -x], dtype=torch.float64)
    for power, expected in ((1.0, one), (2.0, two), (3.0, three)):
        slopes = backward(lambda x, power=power: reste_sign(x, power), both)
        assert slopes.tolist() == pytest.approx([expected, expected], abs=5.1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_threshold_passes_and_the_knee_belongs_to_the_plateau(dtype, sign):
    knee, threshold = (torch.tensor(value, dtype=dtype) for value in (0.1, 1.5))
    beyond = torch.full((), math.inf, dtype=dtype)
    x = sign * torch.stack([knee, knee.nextafter(beyond), threshold, threshold.nextafter(beyond)])
    at_knee, after_knee, at_threshold, after_threshold = backward(lambda x: reste_sign(x, 2.0), x).tolist()
    assert at_knee == pytest.approx(0.1**-0.5, rel=1e-6)
    assert after_knee == pytest.approx(0.5 * 0.1**-0.5, rel=1e-6)
    assert at_threshold == pytest.approx(0.5 * 1.5**-0.5, rel=1e-6)
    assert after_threshold == 0


@pytest.mark.parametrize("power", POWERS)
def test_the_slope_drops_by_the_factor_power_at_the_knee(power):
    x = torch.tensor([0.1, math.nextafter(0.1, 1)], dtype=torch.float64)
    inside, outside = reste_slope(x, power).tolist()
    assert inside / outside == pytest.approx(power, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_power_one_is_the_clipped_identity(dtype):
    x = torch.linspace(-2, 2, 801, dtype=dtype)
    grad = torch.randn(801, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(reste_curve(x, 1.0), x.clamp(-1.5, 1.5))
    assert torch.equal(
        backward(lambda x: reste_sign(x, 1.0), x, grad),
        backward(lambda x: ste_sign(x, threshold=1.5), x, grad),
    )


@pytest.mark.parametrize(("threshold", "knee"), [(1.0, 0.5), (3.0, 0.01), (0.5, 0.5)])
def test_threshold_and_knee_move_the_corners(threshold, knee):
    x = torch.linspace(-4, 4, 999, dtype=torch.float64)
    size = x.abs().numpy()
    root = (1 / 3) * size ** (-2 / 3)
    expected = np.where(size <= knee, knee ** (-2 / 3), np.where(size <= threshold, root, 0))
    actual = backward(lambda x: reste_sign(x, 3.0, threshold, knee), x)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)


def test_ste_threshold_moves_the_cut_and_passes_at_it():
    x = torch.tensor([-2.1, -2.0, 0.0, 2.0, 2.1])
    assert backward(lambda x: ste_sign(x, threshold=2.0), x).tolist() == [0, 1, 1, 1, 0]


def test_a_tensor_power_and_a_number_give_the_same():
    x = torch.linspace(-2, 2, 101, dtype=torch.float64)
    as_tensor = backward(lambda x: reste_sign(x, torch.tensor(2.5)), x)
    assert torch.equal(as_tensor, backward(lambda x: reste_sign(x, 2.5), x))
    assert torch.equal(reste_curve(x, torch.tensor(2.5)), reste_curve(x, 2.5))


def test_no_gradient_reaches_the_power_through_the_sign():
    power = torch.tensor(2.0, requires_grad=True)
    x = torch.linspace(-1, 1, 9, requires_grad=True)
    reste_sign(x, power).sum().backward()
    assert power.grad is None
    assert x.grad is not None


def test_the_slope_can_be_differentiated_again():
    x = torch.cat([torch.tensor([0.0, -0.0, math.inf]), points_off_corners(TWINS["reste"])]).requires_grad_()
    (first,) = torch.autograd.grad(reste_sign(x, 2.0).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    size = x.detach().abs().numpy()
    on_root = (size > 0.1) & (size <= 1.5)
    expected = np.where(on_root, np.sign(x.detach().numpy()) * -0.25 * np.maximum(size, 0.1) ** -1.5, 0)
    np.testing.assert_allclose(second.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("name", sorted(TWINS))
def test_memory_format_and_shape_are_kept(name):
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    out = estimator_at(name, 1.0)(x)
    out.sum().backward()
    assert out.shape == x.shape
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.shape == x.shape


def test_options_out_of_range_are_refused_in_one_line():
    x = torch.zeros(2)
    for call in (
        lambda: reste_sign(x, 0.5),
        lambda: reste_sign(x, math.nan),
        lambda: reste_sign(x, math.inf),
        lambda: reste_sign(x, 2.0, knee=0.0),
        lambda: reste_sign(x, 2.0, threshold=0.05),
        lambda: reste_curve(x, 0.9),
        lambda: reste_slope(x, 2.0, knee=-1.0),
        lambda: ste_sign(x, threshold=0.0),
        lambda: approx_sign(x, zero="two"),
        lambda: identity_sign(x, zero=0),
    ):
        with pytest.raises(ValueError, match=r"^(power|knee|threshold|zero) must [^\n]+$"):
            call()
