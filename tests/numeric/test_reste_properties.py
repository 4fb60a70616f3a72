"""The two sides of the equilibrium as properties: the error falls with the power, the slopes spread."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from reste_twins import KNEE, THRESHOLD

from reste import (
    BinaryLinear,
    binary_sign,
    cosine_power,
    create_estimator,
    estimating_error,
    linear_power,
    reste_curve,
    reste_slope,
    set_power,
)

# The same examples on every machine, and no verdict that depends on how busy it is.
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

powers = st.floats(1.0, 20.0)
values = st.floats(-3.0, 3.0, allow_subnormal=True)
weights = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=6), elements=values)


@quick
@given(weights, powers, powers)
def test_estimating_error_falls_as_the_power_grows(weight, one, other):
    low, high = sorted((one, other))
    estimator = create_estimator("reste")
    errors = []
    for power in (low, high):
        set_power(estimator, power)
        errors.append(estimating_error(torch.from_numpy(weight), estimator).item())
    assert errors[1] <= errors[0] * (1 + 1e-12)


@quick
@given(weights.filter(lambda w: np.any((np.abs(w) > 1e-3) & (np.abs(w) < 0.999))), powers, st.floats(0.01, 5.0))
def test_estimating_error_falls_strictly_where_something_is_left_to_gain(weight, power, more):
    estimator = create_estimator("reste", power=power)
    before = estimating_error(torch.from_numpy(weight), estimator)
    set_power(estimator, power + more)
    assert estimating_error(torch.from_numpy(weight), estimator) < before


inside = st.floats(-THRESHOLD, THRESHOLD)


@quick
@given(hnp.arrays(np.float64, st.integers(2, 20), elements=inside), powers, powers)
def test_slope_spread_grows_with_the_power(x, one, other):
    """Largest over smallest slope among any values that pass a gradient."""
    spreads = []
    for power in sorted((one, other)):
        slopes = reste_slope(torch.from_numpy(x), power)
        spreads.append((slopes.max() / slopes.min()).item())
    assert 1 <= spreads[0] <= spreads[1] * (1 + 1e-12)


@quick
@given(powers)
def test_slope_spread_over_the_whole_band_has_a_closed_form(power):
    slopes = reste_slope(torch.tensor([KNEE, THRESHOLD], dtype=torch.float64), power)
    expected = power * (THRESHOLD / KNEE) ** ((power - 1) / power)
    assert np.isclose((slopes[0] / slopes[1]).item(), expected, rtol=1e-12)


@quick
@given(values, values, powers)
def test_curve_is_monotone_and_lies_between_sign_and_clipped_identity(a, b, power):
    x = torch.tensor(sorted((a, b)), dtype=torch.float64)
    y = reste_curve(x, power)
    assert y[0] <= y[1]
    clipped = x.clamp(-THRESHOLD, THRESHOLD)
    low, high = torch.minimum(clipped, binary_sign(x)), torch.maximum(clipped, binary_sign(x))
    assert ((low - 1e-12 <= y) & (y <= high + 1e-12)).all()


@quick
@given(st.floats(allow_nan=False, width=32), powers)
def test_every_float32_gives_a_sign_and_a_finite_bounded_slope(value, power):
    x = torch.tensor(value, dtype=torch.float32)
    assert binary_sign(x).item() == (1 if value >= 0 else -1)
    assert 0 <= reste_slope(x, power).item() <= 1 / KNEE


@quick
@given(st.floats(0, 1), st.floats(0, 1), st.floats(1, 10))
def test_power_schedules_never_fall_and_stay_in_range(one, other, end):
    for schedule in (cosine_power, linear_power):
        low, high = (schedule(progress, end) for progress in sorted((one, other)))
        assert 1 <= low <= high <= end * (1 + 1e-15)


@quick
@given(st.floats(0, 1), st.floats(1, 10))
def test_cosine_stays_below_linear(progress, end):
    assert cosine_power(progress, end) <= linear_power(progress, end) * (1 + 1e-15)


@quick
@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(-2, 2, width=32)), st.floats(0.125, 8.0, width=16))
def test_signs_do_not_see_the_size_of_a_weight_and_the_scale_does(weight, factor):
    layers = []
    for scaled in (weight, weight * np.float32(factor)):
        layer = BinaryLinear(5, 3, bias=False, weight_estimator=create_estimator("ste"))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(scaled))
        layers.append(layer)
    x = torch.eye(5)
    torch.testing.assert_close(layers[1](x), layers[0](x) * factor, rtol=1e-5, atol=1e-35)
