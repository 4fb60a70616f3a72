"""Surrogate curves f and their slopes g: what a binary sign pretends to be in the backward pass.

Every curve is odd, continuous and written so that its autograd derivative *is* the slope next to it, also at
zero and at the corners. The curve measures how far an estimator is from sign (see `indicators`); the slope is
what the backward pass multiplies the incoming gradient with (see `functional`).

    name        curve f(x)                                     slope g(x)
    identity    x                                              1
    ste         clamp(x, -t, t)                                1          for |x| <= t, else 0
    approx      2x - x|x|, held at +-1 outside [-1, 1]         2 - 2|x|   for |x| <  1, else 0
    reste       sign(x) |x|^(1/o), with chord and saturation   |x|^((1-o)/o) / o, with plateau and cut

All functions work on tensors of any shape and never read a value back to the host. float16 and bfloat16 are
computed in float32: curves come back in the input's dtype, slopes stay float32 so that the product with the
gradient rounds once.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged where it is float32 or float64 already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def require_power(power: float) -> None:
    """Raise ValueError unless `power` >= 1 (NaN and infinity are refused too)."""
    if not 1 <= power < float("inf"):
        raise ValueError(f"power must be a finite number >= 1, got {power}")


def require_threshold(threshold: float) -> None:
    """Raise ValueError unless `threshold` > 0."""
    if not threshold > 0:
        raise ValueError(f"threshold must be > 0, got {threshold}")


def require_knee(knee: float, threshold: float) -> None:
    """Raise ValueError unless 0 < `knee` <= `threshold`: the slope at a knee of zero would be infinite."""
    if not 0 < knee <= threshold:
        raise ValueError(f"knee must satisfy 0 < knee <= threshold, got knee {knee}, threshold {threshold}")


def as_power(power: Tensor | float, x: Tensor) -> Tensor:
    """Return a tensor `power` as it is, a number as a 0-d tensor fit for `x`; no copy from host to device.

    Raises:
        ValueError: a number below 1, or not finite. A tensor is not looked at: that would be a host read.
    """
    if isinstance(power, Tensor):
        return power
    require_power(power)
    return torch.full((), power, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def identity_curve(x: Tensor) -> Tensor:
    """f(x) = x."""
    return x


def ste_curve(x: Tensor, threshold: float = 1.0) -> Tensor:
    """f(x) = clamp(x, -threshold, threshold); dtype and shape of `x`."""
    require_threshold(threshold)
    # Not clamp: whether its gradient passes at the bound itself is no promise of torch's, here it is one.
    return torch.where(x.abs() <= threshold, x, x.sign() * threshold)


def ste_slope(x: Tensor, threshold: float = 1.0) -> Tensor:
    """g(x) = 1 for |x| <= threshold, else 0, in float32 or better."""
    require_threshold(threshold)
    wide = widen(x)
    return (wide.abs() <= threshold).to(wide.dtype)


def approx_curve(x: Tensor) -> Tensor:
    """f(x) = 2x - x|x| for |x| < 1, else the sign of x; dtype and shape of `x`."""
    inner = widen(x).clamp(-1, 1)
    return (inner * (2 - inner.abs())).to(x.dtype)


def approx_slope(x: Tensor) -> Tensor:
    """g(x) = 2 - 2|x| for |x| < 1, else 0, in float32 or better."""
    magnitude = widen(x).abs()
    return torch.where(magnitude < 1, 2 - 2 * magnitude, 0)


def root_curve(x: Tensor, power: Tensor | float) -> Tensor:
    """f(x) = sign(x) |x|^(1/o): ReSTE's power function before it gets its chord and saturation (Wu et al., ICCV 2023).

    Nothing trains with it, its slope at 0 being infinite; the paper's estimating error is measured with it.

    Args:
        x: any shape.
        power: o >= 1, a 0-d tensor or a number.

    Returns:
        f(x), with dtype and shape of `x`.

    Raises:
        ValueError: a number `power` below 1.
    """
    wide = widen(x)
    o = as_power(power, wide).to(wide.dtype)
    return (wide.sign() * wide.abs() ** (1 / o)).to(x.dtype)


@lru_cache(maxsize=64)
def reste_gain(power: float, threshold: float = 1.5, knee: float = 0.1) -> float:
    """What `reste_slope` is multiplied with when it is normalised: c(o) = r(1) / r(o).

        r(o)^2 = E g(z)^2,  z ~ N(0, 1)    the mean square slope under what batch norm puts in front of a sign

    A gradient that passes a sign has its variance multiplied by about r(o)^2. r grows with o, and from layer to
    layer the growth compounds: early layers end up moved by noise. With c(o) the size of gradients is that of the
    clipped identity at every power, and only the slope's shape changes. c(1) = 1; at t = 1.5, m = 0.1 it is 0.83
    for o = 2 and 0.66 for o = 3. The integral is Simpson's over log |z| from m to t, to about 1e-9.

    Args:
        power: o >= 1.
        threshold, knee: t and m, as in `reste_curve`.

    Raises:
        ValueError: as in `reste_curve`.
    """
    require_power(power)
    require_knee(knee, threshold)
    return math.sqrt(_mean_square(1.0, threshold, knee) / _mean_square(power, threshold, knee))


def _mean_square(power: float, threshold: float, knee: float, intervals: int = 256) -> float:
    start, width = math.log(knee), math.log(threshold / knee) / intervals
    points = [math.exp(start + i * width) for i in range(intervals + 1)]
    # g(z)^2 phi(z) dz with dz = z d(log z)
    values = [z ** (2 / power - 1) * math.exp(-z * z / 2) for z in points]
    simpson = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    outside = 2 / math.sqrt(2 * math.pi) * simpson * width / 3 / power**2
    return knee ** (2 / power - 2) * math.erf(knee / math.sqrt(2)) + outside


def reste_curve(
    x: Tensor,
    power: Tensor | float,
    threshold: float = 1.5,
    knee: float = 0.1,
    *,
    gain: Tensor | float = 1.0,
) -> Tensor:
    """The rectified power function that ReSTE differentiates (Wu et al., ICCV 2023).

    With o the power, t the threshold and m the knee:

        f(x) = x m^((1-o)/o)          for |x| <= m          (the chord from 0 to the root at m)
             = sign(x) |x|^(1/o)      for m < |x| <= t
             = sign(x) t^(1/o)        for |x| > t

    o = 1 is the clipped identity; as o grows the curve approaches sign.

    Args:
        x: any shape.
        power: o >= 1, a 0-d tensor (one compiled graph serves all its values) or a number.
        threshold: t, where the curve saturates; in units of x.
        knee: m, 0 < m <= t, where the root takes over from the chord; in units of x.
        gain: multiplies curve and slope; 1 is the published estimator, see `reste_gain`.

    Returns:
        f(x), with dtype and shape of `x`; its autograd derivative is `reste_slope`.

    Raises:
        ValueError: a number `power` below 1, or `knee` outside (0, threshold].
    """
    require_knee(knee, threshold)
    wide = widen(x)
    o = as_power(power, wide).to(wide.dtype)
    magnitude = wide.abs()
    # Bounded from below as well, where the chord is taken: an infinite derivative times 0 would be NaN.
    bounded = torch.where(magnitude <= threshold, magnitude, threshold).clamp(min=knee)
    root = wide.sign() * bounded ** (1 / o)
    chord = wide * knee ** ((1 - o) / o)
    return (torch.where(magnitude <= knee, chord, root) * gain).to(x.dtype)


def reste_slope(
    x: Tensor,
    power: Tensor | float,
    threshold: float = 1.5,
    knee: float = 0.1,
    *,
    gain: Tensor | float = 1.0,
) -> Tensor:
    """The derivative of `reste_curve`, in closed form.

        g(x) = m^((1-o)/o)            for |x| <= m
             = |x|^((1-o)/o) / o      for m < |x| <= t
             = 0                      for |x| > t

    At |x| = m the slope drops by exactly the factor o: a chord is steeper than the tangent at its end.
    Comparisons use the value that `x` really has: bfloat16's nearest neighbour of 0.1 is 0.10009766 and lies
    outside a knee of 0.1.

    Args:
        x, power, threshold, knee, gain: as in `reste_curve`.

    Returns:
        g(x) in float32 or better, finite everywhere; 0 where x is infinite or NaN.

    Raises:
        ValueError: as in `reste_curve`.
    """
    require_knee(knee, threshold)
    magnitude = widen(x).abs()
    o = as_power(power, magnitude).to(magnitude.dtype)
    exponent = (1 - o) / o
    # A power as 2^(e log2 x): where pow is not vectorised, as on CPUs, that takes a third of its time or less.
    steep = magnitude.clamp(knee, threshold).log2().mul_(exponent).exp2_()
    inside = steep * torch.where(magnitude <= knee, gain, gain / o)
    return torch.where(magnitude <= threshold, inside, 0)
