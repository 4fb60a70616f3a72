"""The normalised slope of ReSTE: its root mean square over the pass band is one, and its shape is the published one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from reste_twins import POWERS, TWINS, points_off_corners
from torch._dynamo.testing import CompileCounterWithBackend

from reste import create_estimator, reste_curve, reste_rms, reste_sign, reste_slope, set_power

ALL_POWERS = (*POWERS, 1.9999, 2.0001)


def exact(power: float) -> torch.Tensor:
    return torch.tensor(power, dtype=torch.float64)


def midpoints(threshold: float, count: int = 300_000) -> np.ndarray:
    return (np.arange(count) + 0.5) * (threshold / count)


def backward(function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    return grad


@pytest.mark.parametrize("power", ALL_POWERS)
@pytest.mark.parametrize(("threshold", "knee"), [(1.5, 0.1), (1.0, 0.5), (3.0, 0.02), (0.7, 0.7)])
def test_the_root_mean_square_is_that_of_the_slopes_on_a_fine_grid(power, threshold, knee):
    x = midpoints(threshold)
    slope = np.where(x <= knee, knee ** (1 / power - 1), np.exp(np.log(x) * (1 / power - 1)) / power)
    assert reste_rms(exact(power), threshold, knee).item() == pytest.approx(math.sqrt(np.mean(slope**2)), rel=1e-5)


def test_at_power_one_nothing_changes():
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    assert reste_rms(exact(1.0)).item() == pytest.approx(1.0, abs=1e-15)
    torch.testing.assert_close(reste_slope(x, 1.0, normalize=True), reste_slope(x, 1.0), rtol=1e-14, atol=0)


@settings(deadline=None, max_examples=50)
@given(st.floats(1.0, 6.0), st.floats(0.3, 3.0), st.floats(0.02, 1.0))
def test_the_normalised_slope_has_a_root_mean_square_of_one(power, threshold, share):
    x = torch.from_numpy(midpoints(threshold, 40_000))
    slope = reste_slope(x, exact(power), threshold, knee=share * threshold, normalize=True)
    assert slope.square().mean().sqrt().item() == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize("power", ALL_POWERS)
def test_it_is_the_published_slope_times_one_number(power):
    x = points_off_corners(TWINS["reste"])
    published = TWINS["reste"].slopes(x.numpy(), power)
    actual = backward(lambda x: reste_sign(x, exact(power), normalize=True), x).numpy()
    factor = 1 / reste_rms(exact(power)).item()
    np.testing.assert_allclose(actual, factor * published, rtol=0, atol=1e-12)


@pytest.mark.parametrize("power", POWERS)
def test_the_curve_and_the_slope_stay_one_thing(power):
    x = torch.cat([points_off_corners(TWINS["reste"]), torch.tensor([0.0, 0.1, -0.1, 1.5, -1.5], dtype=torch.float64)])
    from_curve = backward(lambda x: reste_curve(x, exact(power), normalize=True), x)
    torch.testing.assert_close(from_curve, reste_slope(x, exact(power), normalize=True), rtol=0, atol=1e-12)


def test_the_module_passes_the_option_on_and_shows_it():
    plain, normalized = create_estimator("reste"), create_estimator("reste", normalize=True)
    x = torch.linspace(-1, 1, 101)
    for estimator in (plain, normalized):
        set_power(estimator, 3.0)
    ratio = backward(normalized, x) / backward(plain, x)
    torch.testing.assert_close(ratio, torch.full_like(x, 1 / 1.31184), rtol=1e-5, atol=0)
    assert "normalize=True" in repr(normalized)
    assert "normalize" not in repr(plain)


def test_one_compiled_graph_serves_all_powers():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, o: reste_sign(x, o, normalize=True) * x, fullgraph=True, backend=counter)
    x, power = torch.linspace(-2, 2, 101), torch.ones(())
    for value in (1.0, 2.0, 2.5, 3.0):
        power.fill_(value)
        expected = backward(lambda x: reste_sign(x, power, normalize=True) * x, x)
        torch.testing.assert_close(backward(lambda x: compiled(x, power), x), expected)
    assert counter.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_keeps_its_dtype_and_stays_finite(dtype):
    x = torch.tensor([0.0, -0.0, 1e-7, 0.05, 1.0, 1.5, 2.0, math.inf, -math.inf], dtype=dtype)
    grad = backward(lambda x: reste_sign(x, 3.0, normalize=True), x)
    assert grad.dtype == dtype
    assert grad.isfinite().all()
