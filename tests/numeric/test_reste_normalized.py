"""The normalised slope of ReSTE: gradients keep their size at every power, and the shape is the published one."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from reste_twins import POWERS, TWINS, points_off_corners
from scipy import integrate, stats
from torch._dynamo.testing import CompileCounterWithBackend

from reste import create_estimator, reste_curve, reste_gain, reste_sign, reste_slope, set_power

ALL_POWERS = (*POWERS, 1.9999, 2.0001)
CORNERS = [(1.5, 0.1), (1.0, 0.5), (3.0, 0.02), (0.7, 0.7)]


def root_mean_square(power: float, threshold: float = 1.5, knee: float = 0.1) -> float:
    """Of the published slope under a standard normal input, by an integrator that knows nothing of ours."""
    density = stats.norm.pdf
    inside, _ = integrate.quad(lambda x: knee ** (2 / power - 2) * density(x), 0, knee)
    outside, _ = integrate.quad(lambda x: x ** (2 / power - 2) / power**2 * density(x), knee, threshold)
    return math.sqrt(2 * (inside + outside))


def backward(function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    return grad


@pytest.mark.parametrize("power", ALL_POWERS)
@pytest.mark.parametrize(("threshold", "knee"), CORNERS)
def test_the_gain_is_the_ratio_of_two_integrals(power, threshold, knee):
    expected = root_mean_square(1.0, threshold, knee) / root_mean_square(power, threshold, knee)
    assert reste_gain(power, threshold, knee) == pytest.approx(expected, rel=1e-7)


def test_published_gains():
    assert reste_gain(1.0) == 1.0
    assert reste_gain(2.0) == pytest.approx(0.8325, abs=5e-5)
    assert reste_gain(3.0) == pytest.approx(0.6556, abs=5e-5)


@pytest.mark.parametrize("power", ALL_POWERS)
def test_gradients_keep_their_size_under_normal_inputs_at_every_power(power):
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sizes = [reste_slope(x, o, gain=reste_gain(o)).square().mean().sqrt().item() for o in (1.0, power)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-2)


@settings(deadline=None, max_examples=50)
@given(st.floats(1.0, 8.0), st.floats(1.0, 8.0))
def test_the_gain_shrinks_as_slopes_spread_beyond_power_two(a, b):
    low, high = sorted((max(a, 2.0), max(b, 2.0)))
    assert reste_gain(high) <= reste_gain(low) * (1 + 1e-12)


@pytest.mark.parametrize("power", ALL_POWERS)
def test_it_is_the_published_slope_times_one_number(power):
    x = points_off_corners(TWINS["reste"])
    published = TWINS["reste"].slopes(x.numpy(), power)
    actual = backward(lambda x: reste_sign(x, power, gain=0.7), x).numpy()
    np.testing.assert_allclose(actual, 0.7 * published, rtol=0, atol=1e-12)


@pytest.mark.parametrize("power", POWERS)
def test_the_curve_and_the_slope_stay_one_thing(power):
    x = torch.cat([points_off_corners(TWINS["reste"]), torch.tensor([0.0, 0.1, -0.1, 1.5, -1.5], dtype=torch.float64)])
    from_curve = backward(lambda x: reste_curve(x, power, gain=0.7), x)
    torch.testing.assert_close(from_curve, reste_slope(x, power, gain=0.7), rtol=0, atol=1e-12)


def test_the_module_passes_the_option_on_and_shows_it():
    plain, normalized = create_estimator("reste"), create_estimator("reste", normalize=True)
    x = torch.linspace(-1, 1, 101)
    for estimator in (plain, normalized):
        set_power(estimator, 3.0)
    ratio = backward(normalized, x) / backward(plain, x)
    torch.testing.assert_close(ratio, torch.full_like(x, reste_gain(3.0)), rtol=1e-5, atol=0)
    assert "normalize=True" in repr(normalized)
    assert "normalize" not in repr(plain)


def test_one_compiled_graph_serves_all_powers_and_their_gains():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    estimator = create_estimator("reste", normalize=True)
    compiled = torch.compile(lambda x: estimator(x) * x, fullgraph=True, backend=counter)
    x = torch.linspace(-2, 2, 101)
    for value in (1.0, 2.0, 2.5, 3.0):
        set_power(estimator, value)
        torch.testing.assert_close(backward(compiled, x), backward(lambda x: estimator(x) * x, x))
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_casts_and_copies_keep_the_gain():
    estimator = create_estimator("reste", normalize=True, power=3.0)
    for module in (estimator.to(torch.bfloat16), copy.deepcopy(estimator).half(), copy.deepcopy(estimator)):
        assert module.gain.dtype == torch.float32
        assert module.gain.item() == pytest.approx(reste_gain(3.0), rel=1e-6)
    assert not estimator.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_its_dtype_and_stays_finite(dtype):
    x = torch.tensor([0.0, -0.0, 1e-7, 0.05, 1.0, 1.5, 2.0, math.inf, -math.inf], dtype=dtype)
    grad = backward(lambda x: reste_sign(x, 3.0, gain=reste_gain(3.0)), x)
    assert grad.dtype == dtype
    assert grad.isfinite().all()
