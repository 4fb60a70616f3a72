"""Every dtype, every estimator, and the values that break naive formulas."""

from __future__ import annotations

import math

import pytest
import torch
from reste_twins import TWINS

from reste import binary_sign, create_estimator, list_estimators, set_power

BINARY = [name for name in list_estimators() if create_estimator(name).values == (-1.0, 1.0)]
FLAT_AT_ZERO = {"relu_ste", "clipped_relu_ste", "heaviside", "ternary_duo", "reste_levels"}
UNBOUNDED = {"identity", "relu_ste"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def extremes(dtype: torch.dtype) -> torch.Tensor:
    """Zeros, the smallest subnormals and normals, values at the corners, the largest values, infinities."""
    info = torch.finfo(dtype)
    subnormal = torch.zeros((), dtype=dtype).nextafter(torch.ones((), dtype=dtype)).item()
    sizes = [0.0, subnormal, info.tiny, info.eps, 0.1, 1.0, 1.5, info.max, math.inf]
    positive = torch.tensor(sizes, dtype=dtype)
    return torch.cat([positive, -positive])


def by_hand(x: torch.Tensor) -> list[float]:
    return [1.0 if value >= 0 else -1.0 for value in x.tolist()]


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_subnormals_are_among_the_extremes(dtype):
    x = extremes(dtype)
    assert (x == 0).sum() == 2
    assert x[1] > 0
    assert math.copysign(1, x[len(x) // 2].item()) == -1


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_binary_sign_of_extremes(dtype):
    x = extremes(dtype)
    y = binary_sign(x)
    assert y.dtype == dtype
    assert y.tolist() == by_hand(x)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_binary_sign_can_keep_zero(dtype):
    x = extremes(dtype)
    expected = [0.0 if value == 0 else sign for value, sign in zip(x.tolist(), by_hand(x), strict=True)]
    y = binary_sign(x, zero="zero")
    assert y.dtype == dtype
    assert y.tolist() == expected


def test_binary_sign_never_returns_nan():
    nan = torch.tensor([math.nan, -math.nan])
    assert binary_sign(nan).tolist() == [1.0, 1.0]
    assert binary_sign(nan, zero="zero").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("zero", ["one", "zero"])
def test_binary_sign_is_a_constant_for_autograd(zero):
    x = torch.ones(3, requires_grad=True)
    assert not binary_sign(x, zero=zero).requires_grad
    assert torch.equal(x.detach(), torch.ones(3))


@pytest.mark.parametrize("power", [1.0, 3.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list_estimators())
def test_forward_is_one_of_the_values_and_backward_is_finite(name, dtype, power):
    estimator = create_estimator(name)
    set_power(estimator, power)
    x = extremes(dtype).requires_grad_()
    y = estimator(x)
    y.backward(torch.ones_like(y))
    assert y.dtype == x.grad.dtype == dtype
    assert y.tolist() == [TWINS[name].value(value) for value in x.tolist()]
    assert set(y.tolist()) <= set(estimator.values)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(set(list_estimators()) - FLAT_AT_ZERO))
def test_the_slope_at_zero_is_one_of_the_largest(name, dtype):
    estimator = create_estimator(name)
    set_power(estimator, 3.0)
    x = torch.tensor([0.0, -0.0, 0.5], dtype=dtype, requires_grad=True)
    estimator(x).sum().backward()
    assert x.grad[0] == x.grad[1] >= x.grad[2]
    assert x.grad[0] > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list_estimators())
def test_curves_keep_dtype_and_are_finite_where_they_should_be(name, dtype):
    estimator = create_estimator(name)
    set_power(estimator, 3.0)
    x = extremes(dtype).requires_grad_()
    y = estimator.curve(x)
    y.backward(torch.ones_like(y))
    assert y.dtype == dtype
    assert x.grad.isfinite().all()
    assert not y.isnan().any()
    if name not in UNBOUNDED:
        assert y.isfinite().all()


@pytest.mark.parametrize("name", list_estimators())
def test_low_precision_rounds_the_product_once(name):
    """The result is within half a unit in the last place of the float64 result: nothing else was rounded."""
    x = torch.linspace(-1.4, 1.4, 501).bfloat16()
    grad = torch.linspace(-0.7, 1.3, 501).bfloat16()
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        estimator = create_estimator(name)
        set_power(estimator, 3.0)
        leaf = x.to(dtype, copy=True).requires_grad_()
        estimator(leaf).backward(grad.to(dtype))
        results.append(leaf.grad)
    low, exact = results
    torch.testing.assert_close(low.double(), exact, rtol=2**-8 * 1.001, atol=0)


@pytest.mark.parametrize("name", list_estimators())
def test_nan_input_gives_a_sign_and_no_nan_gradient(name):
    x = torch.tensor([math.nan, 0.5], requires_grad=True)
    y = create_estimator(name)(x)
    y.sum().backward()
    assert y[0].item() in ([1.0] if name in BINARY else create_estimator(name).values)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", BINARY)
def test_estimators_can_keep_zero_without_changing_the_gradient(name):
    results = []
    for zero in ("one", "zero"):
        x = torch.tensor([-2.0, -0.5, -0.0, 0.0, 0.5, 2.0], requires_grad=True)
        y = create_estimator(name, zero=zero)(x)
        y.sum().backward()
        results.append((y.tolist(), x.grad))
    assert results[0][0] == [-1, -1, 1, 1, 1, 1]
    assert results[1][0] == [-1, -1, 0, 0, 1, 1]
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3)])
@pytest.mark.parametrize("name", list_estimators())
def test_scalars_and_empty_tensors_pass(name, shape):
    x = torch.zeros(shape, requires_grad=True)
    y = create_estimator(name)(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
