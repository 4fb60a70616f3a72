"""The paper's two claims about the power o, each with the exact condition under which it holds, and where it fails.

Notation: knee m, threshold t, o <= p two powers, f and g curve and slope of ReSTE, r(x) = sign(x) |x|^(1/o) the bare
root of the published error. A distance to sign at x is |f(|x|) - 1|, all curves being odd.

**Error, bare root.** For every x the distance | |x|^(1/o) - 1 | does not rise with o: |x|^(1/o) moves monotonically
towards 1, from below if |x| < 1, from above if |x| > 1. So the norm falls for every tensor, strictly if an entry is
neither 0 nor +-1. At o = 1 it is the identity's error, hence never above that.

**Error, curve in use.** The same on m < |x| <= t, and beyond t, where t^(1/o) takes the place of the root. Inside the
knee f = |x| m^(1/o - 1) <= m^(1/o): it rises with o if m <= 1 and stays below 1. So for m <= 1 the norm falls for every
tensor. For m > 1 it may rise: the chord sinks with o.

**Error against clipped STE**, clamp(x, -c, c). With c = t that is ReSTE at o = 1, so ReSTE is never above it (m <= 1).
With c = 1, the usual choice, ReSTE is never above it on tensors within [-1, 1]; outside STE is exact and ReSTE, with
t > 1, is not: there the claim is false.

**Spread of slopes, relative.** For every distribution of x with a mean slope above 0 the coefficient of variation of
g(x), standard deviation over mean, does not fall with o. Proof: g_p / g_o falls with |x| where g_o does (at the knee
both drop, by p and by o; outside it is |x|^(1/p - 1/o) o/p; beyond t both are 0), so g_p = h(g_o) with h(s)/s
non-decreasing: h is star-shaped, and a star-shaped map makes a non-negative variable more unequal in the Lorenz order,
of which the coefficient of variation is a measure. It is strict if two values within t have different |x| and not both
lie in the knee. If all do lie in the knee, all slopes are equal and there is no spread at any o.

**Spread of slopes, absolute.** Variance = (mean x coefficient of variation)^2, so it does not fall where the mean does
not. Over the uniform distribution on [-a, a] with m <= a <= t the mean slope is f(a)/a = a^(1/o - 1), with a < m it is
m^(1/o - 1): it does not fall iff a <= 1 (m <= 1). A symmetric unimodal distribution is a mixture of such: on [-1, 1],
with m <= 1 <= t, variance and second moment of the slope do not fall with o. Without the condition they may: of
{0.9, 1.4} both slopes go to 0.

**Spread of gradients.** The forward pass is sign whatever o is, so the gradient u that reaches a binary weight from
above does not depend on its estimator's o, and dL/dW = u g(W). For u independent of W
var|u g| = var|u| E g^2 + (E|u|)^2 var g, which does not fall where E g^2 and var g do not. Between several layers u
itself passes through the activations' slopes, and in training W and u move: there the claim is an observation.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from reste_twins import KNEE, THRESHOLD

from reste import BinaryLinear, create_estimator, estimating_error, gradient_instability, reste_slope, set_power

quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
ROUNDING = 1e-12
GRID = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0, 10.0)

powers = st.floats(1.0, 20.0)
any_size = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-10.0, 10.0))
within_one = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1.0, 1.0))


def error(x, name="reste", *, power=1.0, o_end=None, **options):
    estimator = create_estimator(name, **options)
    set_power(estimator, power)
    return estimating_error(torch.as_tensor(x), estimator, o_end).item()


def slopes(x, power, **options):
    return reste_slope(torch.as_tensor(x, dtype=torch.float64), power, **options).numpy()


@quick
@given(any_size, powers, powers)
def test_the_published_error_falls_with_the_power_for_every_tensor(x, one, other):
    low, high = sorted((one, other))
    assert error(x, o_end=high) <= error(x, o_end=low) * (1 + ROUNDING)
    assert error(x, o_end=high) <= error(x, "identity") * (1 + ROUNDING)


@quick
@given(any_size, st.floats(1.0, 10.0), st.floats(0.01, 5.0))
def test_the_published_error_falls_strictly_if_an_entry_is_neither_zero_nor_a_sign(x, power, more):
    size = np.abs(x)
    assume(np.any(((size > 1e-3) & (size < 0.999)) | (size > 1.001)))
    assert error(x, o_end=power + more) < error(x, o_end=power)


@quick
@given(any_size, powers, powers, st.floats(0.01, 1.0), st.floats(0.0, 3.0))
def test_the_error_in_use_falls_for_every_tensor_if_the_knee_is_at_most_one(x, one, other, knee, more):
    options = {"knee": knee, "threshold": knee + more}
    low, high = sorted((one, other))
    assert error(x, power=high, **options) <= error(x, power=low, **options) * (1 + 1e-6)


def test_the_error_in_use_may_rise_if_the_knee_is_above_one():
    assert error([0.1], power=3.0, knee=1.4) > error([0.1], power=1.0, knee=1.4)


@quick
@given(any_size, powers)
def test_the_error_stays_below_that_of_identity_and_of_an_equally_clipped_ste(x, power):
    found = error(x, power=power)
    assert found <= error(x, "identity") * (1 + 1e-6)
    assert found <= error(x, "ste", threshold=THRESHOLD) * (1 + 1e-6)


@quick
@given(within_one, powers)
def test_the_error_stays_below_that_of_ste_clipped_at_one_within_one(x, power):
    assert error(x, power=power) <= error(x, "ste") * (1 + 1e-6)


def test_beyond_one_an_ste_clipped_at_one_is_exact_and_reste_is_not():
    assert error([1.2], "ste") == 0
    assert error([1.2], power=3.0) > 0.06


def relative_spread(x, power, **options):
    values = slopes(x, power, **options)
    return values.std() / values.mean()


@quick
@given(any_size, powers, powers, st.floats(0.01, 2.0), st.floats(0.0, 3.0))
def test_the_relative_spread_of_slopes_grows_with_the_power_for_every_distribution(x, one, other, knee, more):
    options = {"knee": knee, "threshold": knee + more}
    assume(np.any(np.abs(x) <= knee + more))
    low, high = sorted((one, other))
    assert relative_spread(x, low, **options) <= relative_spread(x, high, **options) * (1 + ROUNDING) + ROUNDING


def test_slopes_within_the_knee_have_no_spread_at_any_power():
    x = np.linspace(-KNEE, KNEE, 101)
    assert [relative_spread(x, power) for power in GRID] == pytest.approx([0.0] * len(GRID), abs=1e-12)


def moments(edge, power):
    """Mean and second moment of the slope over the uniform distribution on [-edge, edge], by the midpoint rule."""
    cells = 4_000
    x = (np.arange(cells) + 0.5) * (edge / cells)
    values = slopes(x, power)
    return values.mean(), np.square(values).mean()


@pytest.mark.parametrize("edge", [0.15, 0.5, 1.0, 1.4])
@pytest.mark.parametrize("power", GRID)
def test_the_mean_slope_over_a_uniform_distribution_has_a_closed_form(edge, power):
    mean, _ = moments(edge, power)
    assert mean == pytest.approx(edge ** (1 / power - 1), rel=3e-3)


edges_of_mixture = st.lists(st.floats(0.02, 1.0), min_size=1, max_size=6)


@settings(quick, max_examples=20)
@given(edges_of_mixture, st.data())
def test_variance_and_second_moment_of_slopes_grow_for_symmetric_unimodal_distributions_within_one(edges, data):
    shares = np.array(data.draw(st.lists(st.floats(0.1, 1.0), min_size=len(edges), max_size=len(edges))))
    shares /= shares.sum()
    found = []
    for power in GRID:
        mean, second = (shares[:, None] * [moments(edge, power) for edge in edges]).sum(0)
        found.append((second - mean**2, second))
    for (variance, second), (next_variance, next_second) in itertools.pairwise(found):
        assert variance <= next_variance + 1e-9
        assert second <= next_second + 1e-9


def test_variance_and_second_moment_of_slopes_may_fall_far_from_zero():
    near, far = (slopes([0.9, 1.4], power) for power in (2.0, 10.0))
    assert far.var() < near.var()
    assert np.square(far).mean() < np.square(near).mean()


@settings(quick, max_examples=10)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 1.0))
def test_instability_of_a_layers_gradient_grows_with_the_power_for_weights_within_one(seed, edge):
    """4096 weights drawn uniformly, upstream gradients drawn apart: the formula holds up to the sample."""
    torch.manual_seed(seed)
    layer = BinaryLinear(
        64, 64, bias=False, dtype=torch.float64, weight_estimator=create_estimator("reste"), scale="none"
    )
    torch.nn.init.uniform_(layer.weight, -edge, edge)
    x, upstream = torch.randn(16, 64, dtype=torch.float64), torch.randn(16, 64, dtype=torch.float64)
    found = []
    for power in (1.0, 1.5, 2.0, 3.0):
        set_power(layer, power)
        layer.weight.grad = None
        (layer(x) * upstream).sum().backward()
        found.append(gradient_instability(layer.weight.grad).item())
        expected = np.var(np.abs((upstream.T @ x).numpy() * slopes(layer.weight.detach().numpy(), power)), ddof=1)
        # The power is a float32 buffer, here as there.
        assert found[-1] == pytest.approx(expected, rel=1e-6)
    assert found == sorted(found)
