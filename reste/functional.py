"""Binary signs with a chosen backward pass: +-1 forward, the slope of a surrogate curve backward.

The two equations of ReSTE (Wu et al., "Estimator Meets Equilibrium Perspective: A Rectified Straight Through
Estimator for Binary Neural Networks Training", ICCV 2023):

    forward     y = sign(x)
    backward    dL/dx = dL/dy * g(x),    g(x) = |x|^((1-o)/o) / o    for  m < |x| <= t
                                              = m^((1-o)/o)          for  |x| <= m
                                              = 0                    for  |x| > t

    symbol   argument     meaning (all dimensionless)                                  official code
    o        power        1: clipped straight-through estimator; larger: nearer sign   1 -> 3 in training
    t        threshold    beyond it no gradient passes                                 1.5
    m        knee         below it the slope is that of the chord from 0 to f(m)       0.1

sign(0) = +1 by convention, for +0.0 and -0.0 alike, because one bit has no room for a third value and
inference engines reject weights that have it. zero="zero" gives sign(0) = 0: the official code's arithmetic.

Functions here take tensors of any shape, keep dtype and shape, and accept float64, float32, bfloat16 and
float16. The curves and slopes live in `curves` and are re-exported.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .curves import (
    approx_curve,
    approx_slope,
    as_power,
    identity_curve,
    require_knee,
    require_threshold,
    reste_curve,
    reste_gain,
    reste_slope,
    root_curve,
    ste_curve,
    ste_slope,
)
from .kernels import kernels_for

__all__ = [
    "Zero",
    "approx_curve",
    "approx_sign",
    "approx_slope",
    "binary_sign",
    "identity_curve",
    "identity_sign",
    "require_zero",
    "reste_curve",
    "reste_gain",
    "reste_sign",
    "reste_slope",
    "root_curve",
    "ste_curve",
    "ste_sign",
    "ste_slope",
]

Zero = Literal["one", "zero"]
"""What the sign of zero is: "one" (default) or "zero" (the official code's numerics)."""


def require_zero(zero: str) -> None:
    """Raise ValueError unless `zero` is "one" or "zero"."""
    if zero not in get_args(Zero):
        raise ValueError(f"zero must be 'one' or 'zero', got {zero!r}")


def binary_sign(x: Tensor, *, zero: Zero = "one") -> Tensor:
    """The sign of `x` as a constant: no gradient flows.

        y = +1  for x >= 0        (+0.0 and -0.0 included)
        y = -1  for x <  0

    Args:
        x: any shape, any floating dtype. Infinities have the sign one expects. NaN gives +1, or 0 with
            zero="zero": the result never contains NaN, so look for non-finite values in the input.
        zero: "one" or "zero", the value at x = +-0.0.

    Returns:
        dtype, shape and memory format of `x`.

    Raises:
        ValueError: `zero` is neither of the two.
    """
    require_zero(zero)
    if (fused := kernels_for(x)) is not None:
        return fused.binary_sign(x, zero)
    if zero == "zero":
        return x.detach().sign()
    return (x < 0).to(x.dtype).mul_(-2).add_(1)


def identity_sign(x: Tensor, *, zero: Zero = "one") -> Tensor:
    """The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432).

        y = sign(x),    g(x) = 1

    Args:
        x: any shape.
        zero: see `binary_sign`.

    Raises:
        ValueError: an unknown `zero`.
    """
    return _IdentitySign.apply(x, zero)


def ste_sign(x: Tensor, threshold: float = 1.0, *, zero: Zero = "one") -> Tensor:
    """The clipped straight-through estimator (Courbariaux et al. 2016, arXiv 1602.02830).

        y = sign(x),    g(x) = 1  for |x| <= threshold, else 0

    Args:
        x: any shape.
        threshold: > 0; |x| = threshold still passes the gradient.
        zero: see `binary_sign`.

    Raises:
        ValueError: `threshold` <= 0, or an unknown `zero`.
    """
    require_threshold(threshold)
    if (fused := kernels_for(x)) is not None:
        require_zero(zero)
        return fused.ste_sign(x, threshold, zero)
    return _SteSign.apply(x, threshold, zero)


def approx_sign(x: Tensor, *, zero: Zero = "one") -> Tensor:
    """Bi-Real Net's ApproxSign (Liu et al., ECCV 2018): the slope of a piecewise polynomial.

        y = sign(x),    g(x) = 2 - 2|x|  for |x| < 1, else 0

    Args:
        x: any shape.
        zero: see `binary_sign`.

    Raises:
        ValueError: an unknown `zero`.
    """
    return _ApproxSign.apply(x, zero)


def reste_sign(
    x: Tensor,
    power: Tensor | float,
    threshold: float = 1.5,
    knee: float = 0.1,
    *,
    gain: Tensor | float = 1.0,
    zero: Zero = "one",
) -> Tensor:
    """The rectified straight-through estimator; equations and symbols at the top of this module.

    Args:
        x: any shape.
        power: o >= 1, a 0-d tensor or a number. A tensor is used when the backward pass runs, and autograd
            refuses to run it if the tensor was written in between.
        threshold: t; |x| = t still passes the gradient.
        knee: m, 0 < m <= t; |x| = m belongs to the plateau.
        gain: multiplies the slope, a 0-d tensor or a number; 1 is the published slope, see `curves.reste_gain`.
        zero: see `binary_sign`.

    Returns:
        +-1 in the dtype and shape of `x`. No gradient reaches `power` or `gain`.

    Raises:
        ValueError: a number `power` below 1, `knee` outside (0, threshold], or an unknown `zero`.
    """
    require_knee(knee, threshold)
    return _ResteSign.apply(x, as_power(power, x), threshold, knee, gain, zero)


def _through(grad: Tensor, slope: Tensor) -> Tensor:
    """grad * slope, multiplied in the wider dtype and rounded once to the dtype of `grad`."""
    return (grad * slope).to(grad.dtype)


class _IdentitySign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, zero: Zero) -> Tensor:
        return binary_sign(x, zero=zero)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None


class _SteSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, threshold: float, zero: Zero) -> Tensor:
        return binary_sign(x, zero=zero)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.threshold, _ = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _through(grad, ste_slope(x, ctx.threshold)), None, None


class _ApproxSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, zero: Zero) -> Tensor:
        return binary_sign(x, zero=zero)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _ = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return _through(grad, approx_slope(x)), None


class _ResteSign(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, power: Tensor, threshold: float, knee: float, gain: Tensor | float, zero: Zero) -> Tensor:
        return binary_sign(x, zero=zero)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, power, ctx.threshold, ctx.knee, gain, _ = inputs
        ctx.gain = None if isinstance(gain, Tensor) else gain
        ctx.save_for_backward(x, power, *([gain] if ctx.gain is None else []))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, power, *gain = ctx.saved_tensors
        factor = gain[0] if gain else ctx.gain
        if (fused := kernels_for(x)) is not None:
            through = fused.reste_backward(grad, x, power, ctx.threshold, ctx.knee, factor)
        else:
            through = _through(grad, reste_slope(x, power, ctx.threshold, ctx.knee, gain=factor))
        return through, None, None, None, None, None
