"""Curves and slopes of the field's other estimators, by the rules of `curves`.

    name               curve f(x)                                 slope g(x)
    tanh               tanh(c x)                                  c (1 - tanh(c x)^2)
    ede                k tanh(t x)                                k t (1 - tanh(t x)^2)
    swish              T + u (1 - T^2) / 2                        b (1 - T^2) (1 - u T / 2)
    dsq                tanh(k x) / tanh(k), held beyond +-1       k (1 - tanh(k x)^2) / tanh(k)     for |x| <= 1, else 0
    fourier            4/pi sum sin((2i+1) w x) / (2i+1)          4w/pi sum cos((2i+1) w x)         for |x| <= 1, else 0
    relu               max(x, 0)                                  1  for x > 0, else 0
    unit               clamp(x, 0, 1)                             1  for 0 < x < 1, else 0
    rational           o x / (1 + (o-1) |x|), held beyond +-t     o / (1 + (o-1) |x|)^2             for |x| <= t, else 0

with u = b x and T = tanh(u/2) for swish. Slopes are 0 where x is NaN. 1 - tanh^2 is computed without the difference,
which would cancel far from 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .curves import as_power, require_threshold, widen

FAR = 50.0
"""1 - tanh(u/2)^2 is below 1e-20 for |u| > FAR; u itself is held there, since infinity times 0 is not a number."""


def tanh_curve(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """f(x) = tanh(c x), with c the `scale`; dtype and shape of `x`."""
    return torch.tanh(widen(x) * scale).to(x.dtype)


def tanh_slope(x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """g(x) = c (1 - tanh(c x)^2), in float32 or better."""
    return _sech_squared(widen(x) * scale) * scale


def ede_curve(x: Tensor, sharpness: Tensor | float, size: Tensor | float) -> Tensor:
    """f(x) = k tanh(t x), with t the `sharpness` and k the `size` (IR-Net, Qin et al., CVPR 2020)."""
    return (torch.tanh(widen(x) * sharpness) * size).to(x.dtype)


def ede_slope(x: Tensor, sharpness: Tensor | float, size: Tensor | float) -> Tensor:
    """g(x) = k t (1 - tanh(t x)^2), in float32 or better."""
    return _sech_squared(widen(x) * sharpness) * size * sharpness


def swish_curve(x: Tensor, beta: float = 5.0) -> Tensor:
    """f(x) = 2 s(u) (1 + u (1 - s(u))) - 1 with u = beta x and s the logistic function (Darabi et al. 2018)."""
    u = (widen(x) * beta).clamp(-FAR, FAR)
    half = torch.tanh(u / 2)
    return (half + u * (1 - half.square()) / 2).to(x.dtype)


def swish_slope(x: Tensor, beta: float = 5.0) -> Tensor:
    """g(x) = beta (2 - u tanh(u/2)) / (1 + cosh u), in float32 or better; below 0 for |u| > 2.4."""
    u = (widen(x) * beta).clamp(-FAR, FAR)
    return _sech_squared(u / 2) * torch.where(u.isnan(), 0, 1 - u * torch.tanh(u / 2) / 2) * beta


def dsq_curve(x: Tensor, k: Tensor | float) -> Tensor:
    """f(x) = tanh(k x) / tanh(k) for |x| <= 1, else the sign of x (Gong et al., ICCV 2019, at one bit).

    The paper writes s tanh(k x), s = 1 / (1 - a), k = ln(2/a - 1) / 2 on [-1, 1]: 1 - a is tanh(k), so that k alone
    says it all and f(1) = 1.
    """
    wide = widen(x)
    k = _as_tensor(k, wide)
    inside = torch.tanh(torch.where(wide.abs() <= 1, wide, 0) * k) / torch.tanh(k)
    return torch.where(wide.abs() <= 1, inside, wide.sign()).to(x.dtype)


def dsq_slope(x: Tensor, k: Tensor | float) -> Tensor:
    """g(x) = k (1 - tanh(k x)^2) / tanh(k) for |x| <= 1, else 0, in float32 or better."""
    wide = widen(x)
    k = _as_tensor(k, wide)
    return torch.where(wide.abs() <= 1, _sech_squared(wide * k) * (k / torch.tanh(k)), 0)


def dsq_slope_of_k(x: Tensor, k: Tensor) -> Tensor:
    """df/dk of `dsq_curve`: (x (1 - tanh(k x)^2) - f(x) (1 - tanh(k)^2)) / tanh(k) for |x| <= 1, else 0."""
    wide = widen(x)
    k = _as_tensor(k, wide)
    steep = wide * _sech_squared(wide * k) - dsq_curve(wide, k) * _sech_squared(k)
    return torch.where(wide.abs() <= 1, steep / torch.tanh(k), 0)


def fourier_curve(x: Tensor, terms: Tensor | float, omega: float = 0.1, most: int = 19) -> Tensor:
    """f(x) = 4/pi sum_{i<n} sin((2i+1) w x) / (2i+1) for |x| <= 1, held beyond (FDA, Xu et al., NeurIPS 2021).

    Args:
        x: any shape.
        terms: n, a 0-d tensor (one compiled graph serves all its values) or a number.
        omega: w.
        most: the largest n that there will be; each term up to it is computed.

    Returns:
        f(x), with dtype and shape of `x`.
    """
    wide = widen(x)
    angle = torch.where(wide.abs() <= 1, wide, wide.sign()) * omega
    terms = _as_tensor(terms, wide)
    parts = (torch.sin((2 * i + 1) * angle) / (2 * i + 1) * (terms > i) for i in range(most))
    return (sum(parts, torch.zeros_like(wide)) * (4 / math.pi)).to(x.dtype)


def fourier_slope(x: Tensor, terms: Tensor | float, omega: float = 0.1) -> Tensor:
    """g(x) = 4w/pi sum_{i<n} cos((2i+1) w x) for |x| <= 1, else 0, in float32 or better.

    The sum is sin(2n w x) / (2 sin(w x)), whatever the number of terms.
    """
    wide = widen(x)
    inside = wide.abs() <= 1
    turns = torch.where(inside, wide, 0) * (omega / math.pi)
    terms = _as_tensor(terms, wide)
    cosines = terms * torch.sinc(2 * terms * turns) / torch.sinc(turns)
    return torch.where(inside, cosines * (4 * omega / math.pi), 0)


def relu_curve(x: Tensor) -> Tensor:
    """f(x) = max(x, 0); dtype and shape of `x`."""
    return torch.where(x > 0, x, 0)


def relu_slope(x: Tensor) -> Tensor:
    """g(x) = 1 for x > 0, else 0, in float32 or better."""
    wide = widen(x)
    return (wide > 0).to(wide.dtype)


def unit_curve(x: Tensor) -> Tensor:
    """f(x) = clamp(x, 0, 1); dtype and shape of `x`."""
    return torch.where((x > 0) & (x < 1), x, (x >= 1).to(x.dtype))


def unit_slope(x: Tensor) -> Tensor:
    """g(x) = 1 for 0 < x < 1, else 0, in float32 or better."""
    wide = widen(x)
    return ((wide > 0) & (wide < 1)).to(wide.dtype)


def rational_curve(x: Tensor, power: Tensor | float, threshold: float = 1.5) -> Tensor:
    """f(x) = o x / (1 + (o-1) |x|) for |x| <= t, held beyond: ReSTE's power function without a power.

    Of all fractions (a x) / (b + |x|) the one that has value 1 and slope 1/o at 1, as x^(1/o) has. o = 1 is the clipped
    identity, o to infinity is sign. Its slope at 0 is o: no knee is needed.

    Args:
        x: any shape.
        power: o >= 1, a 0-d tensor or a number.
        threshold: t, where the curve saturates; in units of x.

    Raises:
        ValueError: a number `power` below 1, or `threshold` <= 0.
    """
    require_threshold(threshold)
    wide = widen(x)
    o = as_power(power, wide).to(wide.dtype)
    held = torch.where(wide.abs() <= threshold, wide, wide.sign() * threshold)
    return (o * held / (1 + (o - 1) * held.abs())).to(x.dtype)


def rational_slope(x: Tensor, power: Tensor | float, threshold: float = 1.5) -> Tensor:
    """g(x) = o / (1 + (o-1) |x|)^2 for |x| <= t, else 0; arguments and errors as in `rational_curve`."""
    require_threshold(threshold)
    magnitude = widen(x).abs()
    o = as_power(power, magnitude).to(magnitude.dtype)
    return torch.where(magnitude <= threshold, o / (1 + (o - 1) * magnitude).square(), 0)


def _sech_squared(u: Tensor) -> Tensor:
    """1 - tanh(u)^2 to full relative precision, 0 where u is NaN."""
    small = torch.exp(-2 * u.abs())
    return torch.where(u.isnan(), 0, 4 * small / (1 + small).square())


def _as_tensor(value: Tensor | float, x: Tensor) -> Tensor:
    return value.to(x.dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=x.dtype, device=x.device)
