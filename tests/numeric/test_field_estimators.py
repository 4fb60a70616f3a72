"""What the field's estimators do while they train and with their options, from formulas written again here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from reste import create_estimator, list_estimators, set_power, set_progress
from reste.buffers import Scheduled

X = np.linspace(-1.9, 1.9, 77)


def slope_of(estimator, x=X):
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(estimator(leaf).sum(), leaf)
    return slope.numpy()


def slope_of_curve(estimator, x=X):
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(estimator.curve(leaf).sum(), leaf)
    return slope.numpy()


@pytest.mark.parametrize(("t_min", "t_max"), [(0.1, 10.0), (0.001, 10.0)])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.75, 1.0])
def test_ede_moves_from_nearly_the_identity_to_nearly_the_sign(t_min, t_max, progress):
    estimator = create_estimator("ede", t_min=t_min, t_max=t_max)
    set_progress(estimator, progress)
    low, high = math.log10(t_min), math.log10(t_max)
    t = 10 ** (low + (high - low) * progress)
    k = 1 / t if t < 1 else 1.0
    expected = [k * t * (1 - math.tanh(t * x) ** 2) for x in X]
    np.testing.assert_allclose(slope_of(estimator), expected, rtol=0, atol=2e-6 * k * t)
    np.testing.assert_allclose(slope_of_curve(estimator), slope_of(estimator), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("progress", "terms"), [(0.0, 10), (0.1, 10), (0.12, 11), (0.5, 14), (0.99, 18), (1.0, 19)])
def test_fda_has_more_terms_as_training_goes_on(progress, terms):
    estimator = create_estimator("fda")
    set_progress(estimator, progress)
    sums = [0.4 / math.pi * sum(math.cos((2 * i + 1) * 0.1 * x) for i in range(terms)) for x in X]
    np.testing.assert_allclose(slope_of(estimator), np.where(np.abs(X) <= 1, sums, 0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(slope_of_curve(estimator), slope_of(estimator), rtol=0, atol=1e-12)


def test_only_ede_and_fda_follow_progress():
    annealed = {
        name
        for name in list_estimators()
        if type(create_estimator(name)).write_progress is not Scheduled.write_progress
    }
    assert annealed == {"ede", "fda"}


def test_what_anneals_survives_casts_and_is_not_in_the_state_dict():
    for name, buffers in {"ede": ["k", "t"], "fda": ["n"]}.items():
        estimator = create_estimator(name)
        set_progress(estimator, 0.377)
        before = {key: value.clone() for key, value in estimator.named_buffers()}
        assert sorted(before) == buffers
        held = dict(estimator.named_buffers())
        for key, value in estimator.half().double().named_buffers():
            assert value is held[key]
            assert value.dtype == torch.float32
            assert torch.equal(value, before[key])
        assert not estimator.state_dict()


@pytest.mark.parametrize(
    ("name", "options", "slope"),
    [
        ("tanh", {"scale": 3.0}, lambda x: 3 / math.cosh(3 * x) ** 2),
        ("swish_sign", {"beta": 2.0}, lambda x: 2 * (2 - 2 * x * math.tanh(x)) / (1 + math.cosh(2 * x))),
        ("dsq", {"alpha": 0.05}, lambda x: dsq(x, 0.05)),
        ("dsq", {"alpha": 0.05, "learn": True}, lambda x: dsq(x, 0.05)),
        ("fda", {"omega": 0.5, "terms": 2, "last_terms": 2}, lambda x: two_terms(x) if abs(x) <= 1 else 0.0),
        ("rational", {"threshold": 0.7, "power": 4.0}, lambda x: 4 / (1 + 3 * abs(x)) ** 2 if abs(x) <= 0.7 else 0.0),
    ],
)
def test_options_reach_slope_and_curve(name, options, slope):
    estimator = create_estimator(name, **options).double()
    np.testing.assert_allclose(slope_of(estimator), [slope(x) for x in X], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(slope_of_curve(estimator), slope_of(estimator), rtol=0, atol=1e-12)


def dsq(x, alpha):
    s, k = 1 / (1 - alpha), math.log(2 / alpha - 1) / 2
    return s * k * (1 - math.tanh(k * x) ** 2) if abs(x) <= 1 else 0.0


def two_terms(x):
    return 2 / math.pi * (math.cos(0.5 * x) + math.cos(1.5 * x))


def test_learnt_alpha_gets_the_gradient_of_the_curve_and_of_finite_differences():
    estimator = create_estimator("dsq", alpha=0.3, learn=True).double()
    (parameter,) = estimator.parameters()
    x = torch.tensor(X)
    grad = torch.linspace(-1, 2, len(X), dtype=torch.float64)
    (found,) = torch.autograd.grad(estimator(x), parameter, grad)
    (of_curve,) = torch.autograd.grad(estimator.curve(x), parameter, grad)
    assert found.item() == pytest.approx(of_curve.item(), rel=1e-10)

    def total(log_k):
        alpha = 1 - math.tanh(math.exp(log_k))
        s, k = 1 / (1 - alpha), math.log(2 / alpha - 1) / 2
        values = [s * math.tanh(k * v) if abs(v) <= 1 else math.copysign(1, v) for v in X]
        return float(np.dot(values, grad.numpy()))

    at, step = parameter.item(), 1e-5
    assert found.item() == pytest.approx((total(at + step) - total(at - step)) / (2 * step), rel=1e-6)


def test_alpha_is_no_parameter_unless_it_is_learnt():
    assert not list(create_estimator("dsq").parameters())
    assert list(create_estimator("dsq", learn=True).state_dict()) == ["log_k"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tanh", {"scale": 0.0}),
        ("tanh", {"scale": math.nan}),
        ("ede", {"t_min": 0.0}),
        ("ede", {"t_min": 1.0, "t_max": 0.5}),
        ("swish_sign", {"beta": -1.0}),
        ("fda", {"terms": 0}),
        ("fda", {"terms": 20}),
        ("fda", {"omega": 4.0}),
        ("dsq", {"alpha": 1.0}),
        ("rational", {"power": 0.5}),
        ("rational", {"threshold": 0.0}),
        ("reste_levels", {"levels": 1}),
        ("reste_levels", {"levels": 2.5}),
        ("reste_levels", {"knee": 2.0}),
        ("heaviside", {"zero": "half"}),
    ],
)
def test_an_option_out_of_range_is_refused_in_one_line(name, options):
    with pytest.raises(ValueError, match=r"^[a-z_]+ must [^\n]+$"):
        create_estimator(name, **options)


# ---- the fraction instead of the power ----


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0, 8.0])
def test_the_fraction_meets_the_power_function_at_one_in_value_and_slope(power):
    estimator = create_estimator("rational", power=power)
    one = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert estimator.curve(one).tolist() == pytest.approx([1, -1], abs=1e-12)
    assert slope_of(estimator, one.numpy()) == pytest.approx(1 / power, rel=1e-12)


def test_the_documentation_tells_how_far_the_fraction_is_from_the_power_function():
    rows = []
    x = torch.linspace(-1.5, 1.5, 300_001, dtype=torch.float64)
    for power in (1.5, 2.0, 3.0):
        fraction, root = (create_estimator(name, power=power) for name in ("rational", "reste"))
        distance = (fraction.curve(x) - root.curve(x)).abs().max().item()
        errors = [math.sqrt(gaussian_mean((e.curve(x) - e(x)).square(), x)) for e in (fraction, root)]
        steepest = [slope_of(e, np.zeros(1))[0] for e in (fraction, root)]
        rows.append(
            f"| {power:g} | {distance:.2f} | {errors[0]:.3f} | {errors[1]:.3f} | {steepest[0]:.2f} | "
            f"{steepest[1]:.2f} |"
        )
    text = (Path(__file__).resolve().parents[2] / "docs" / "estimators.md").read_text(encoding="utf-8")
    for row in rows:
        assert row in text


def gaussian_mean(values, x):
    """Over a standard normal variable cut to the grid."""
    weights = torch.exp(-x.square() / 2)
    return ((values * weights).sum() / weights.sum()).item()


def test_at_power_one_the_fraction_is_the_clipped_identity():
    estimator = create_estimator("rational")
    np.testing.assert_array_equal(slope_of(estimator), np.where(np.abs(X) <= 1.5, 1.0, 0.0))


# ---- more values than two ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_duo_values_thresholds_and_ties(dtype):
    x = torch.tensor([-9.0, 0.0, 0.2490234375, 0.25, 0.5, 0.7490234375, 0.75, 1.0, 9.0]).to(dtype)
    ties = (x == 0.25) | (x == 0.5) | (x == 0.75)
    ternary = create_estimator("ternary_duo")(x)
    bit = create_estimator("heaviside")(x)
    assert ternary.dtype == bit.dtype == dtype
    assert ternary.tolist() == [sum(v >= c for c in (0.25, 0.75)) / 2 for v in x.tolist()]
    assert bit.tolist() == [float(v >= 0.5) for v in x.tolist()]
    mean = create_estimator("ternary_duo", zero="zero")(x)
    assert mean[x == 0.25].unique().tolist() == [0.25]
    assert mean[x == 0.75].unique().tolist() == [0.75]
    assert torch.equal(mean[~ties], ternary[~ties])
    assert create_estimator("heaviside", zero="zero")(x)[x == 0.5].tolist() == [0.5]


def test_the_ternary_value_is_the_mean_of_two_shifted_bits():
    bit = create_estimator("heaviside")
    x = torch.linspace(-1, 2, 3001, dtype=torch.float64)
    assert torch.equal(create_estimator("ternary_duo")(x), (bit(x + 0.25) + bit(x - 0.25)) / 2)


@pytest.mark.parametrize("name", ["heaviside", "ternary_duo", "clipped_relu_ste"])
def test_gradients_pass_strictly_inside_the_unit_interval(name):
    assert slope_of(create_estimator(name), np.array([-0.1, 0.0, 1e-9, 0.5, 0.999, 1.0, 1.1])).tolist() == [
        *(0, 0, 1, 1, 1, 0, 0)
    ]


LEVELS = (2, 3, 4, 8, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [False, True])
def test_two_levels_are_reste_bit_for_bit(dtype, normalize):
    x = torch.cat([torch.linspace(-2, 2, 4001), torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])]).to(dtype)
    grad = torch.randn(len(x), generator=torch.Generator().manual_seed(0)).to(dtype)
    for zero in ("one", "zero"):
        found = []
        for name, more in (("reste", {}), ("reste_levels", {"levels": 2})):
            estimator = create_estimator(name, normalize=normalize, zero=zero, **more)
            set_power(estimator, 2.3)
            leaf = x.clone().requires_grad_()
            y = estimator(leaf)
            y.backward(grad)
            found.append((y.detach(), leaf.grad, estimator.curve(x)[:-1]))
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("levels", LEVELS)
def test_forward_is_the_nearest_level(levels):
    x = np.random.default_rng(0).uniform(-1.6, 1.6, 2000)
    values = [-1 + 2 * k / (levels - 1) for k in range(levels)]
    nearest = [min(values, key=lambda v: abs(v - one)) for one in x]
    estimator = create_estimator("reste_levels", levels=levels)
    found = estimator(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, nearest, rtol=0, atol=1e-12)
    assert set(found.tolist()) == set(estimator.values)
    assert sorted(estimator.values) == [-v for v in sorted(estimator.values, reverse=True)]


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_around_each_threshold_lies_a_power_segment(levels, power):
    half = 1 / (levels - 1)
    thresholds = [-1 + (2 * k + 1) * half for k in range(levels - 1)]
    x = np.random.default_rng(1).uniform(-1.6, 1.6, 2000)
    expected = []
    for value in x:
        centre = min(thresholds, key=lambda c: abs(c - value))
        u = abs(value - centre) / half
        expected.append(0.0 if u > 1.5 else 0.1 ** (1 / power - 1) if u <= 0.1 else u ** (1 / power - 1) / power)
    estimator = create_estimator("reste_levels", levels=levels, power=power)
    np.testing.assert_allclose(slope_of(estimator, x), expected, rtol=1e-9)
    np.testing.assert_allclose(slope_of_curve(estimator, x), expected, rtol=1e-9)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_stairs_are_continuous_and_meet_every_level(levels):
    for normalize in (False, True):
        estimator = create_estimator("reste_levels", levels=levels, power=3.0, normalize=normalize)
        gain = estimator.gain.item()
        at_levels = estimator.curve(torch.tensor(estimator.values, dtype=torch.float64))
        np.testing.assert_allclose(at_levels.numpy(), gain * np.array(estimator.values), rtol=0, atol=1e-12)
        x = torch.linspace(-1.6, 1.6, 200_001, dtype=torch.float64)
        assert estimator.curve(x).diff().abs().max() <= 4.65 * gain * 1.6e-5


def test_at_power_one_levels_are_rounded_with_the_clipped_identity_behind():
    slopes = slope_of(create_estimator("reste_levels", levels=4))
    bound = 1 + 0.5 / 3
    np.testing.assert_array_equal(slopes, np.where(np.abs(X) <= bound, 1.0, 0.0))


@pytest.mark.parametrize("levels", LEVELS)
def test_normalised_levels_keep_the_mean_square_slope_under_a_normal_input(levels):
    x = np.linspace(-8, 8, 1_600_001)
    weights = np.exp(-x * x / 2)
    squares = []
    for power in (1.0, 2.5):
        estimator = create_estimator("reste_levels", levels=levels, power=power, normalize=True)
        squares.append(np.sum(slope_of(estimator, x) ** 2 * weights))
    assert squares[1] == pytest.approx(squares[0], rel=2e-4)
