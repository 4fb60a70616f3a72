"""Outputs of more values than -1 and 1, and ReSTE for them.

    name           values                      thresholds           slope
    heaviside      0, 1                        1/2                  1 on (0, 1)
    ternary_duo    0, 1/2, 1                   1/4, 3/4             1 on (0, 1)
    reste_levels   n of them, from -1 to 1     midway between       ReSTE's around each threshold

ReSTE's idea for n values: replace each step of the stairs by the power function that replaces sign. With h = 1/(n-1)
half the distance of two levels, c the nearest threshold and u = (x - c) / h,

    y = c + h sign(u)        f(x) = c + h reste_curve(u)        g(x) = reste_slope(u)

Around an inner threshold u runs from -1 to 1, where f meets the level and the next step begins; beyond the outermost
levels it goes on to ReSTE's threshold t, which like the knee is in units of u. o = 1 is the clipped identity, o to
infinity is the stairs, n = 2 is ReSTE.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial, reduce

import torch
from torch import Tensor

from .curves import require_knee, require_power, reste_curve, reste_gain, reste_slope, widen
from .curves_field import unit_slope
from .functional import Zero, binary_sign, require_zero
from .functional_field import Argument, surrogate


def require_levels(levels: int) -> None:
    """Raise ValueError unless `levels` is a whole number from 2 to 256."""
    if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= 256:
        raise ValueError(f"levels must be a whole number from 2 to 256, got {levels!r}")


def heaviside(x: Tensor, *, zero: Zero = "one") -> Tensor:
    """One bit as {0, 1}, with the threshold in the middle of (0, 1) (BinaryDuo, Kim et al., ICLR 2020).

        y = 1  for x >= 1/2, else 0        g(x) = 1  for 0 < x < 1, else 0

    Args:
        x: any shape.
        zero: what a tie (x = 1/2) gives: "one" the upper value, "zero" the mean of the two.

    Raises:
        ValueError: an unknown `zero`.
    """
    return surrogate(x, partial(_steps, thresholds=(0.5,), zero=zero), unit_slope)


def ternary_duo(x: Tensor, *, zero: Zero = "one") -> Tensor:
    """Three values on [0, 1], the mean of two bits: BinaryDuo's activation (Kim et al., ICLR 2020).

        y = ([x >= 1/4] + [x >= 3/4]) / 2        g(x) = 1  for 0 < x < 1, else 0

    Arguments and errors as in `heaviside`.
    """
    return surrogate(x, partial(_steps, thresholds=(0.25, 0.75), zero=zero), unit_slope)


def reste_levels(
    x: Tensor,
    power: Tensor,
    levels: int = 2,
    threshold: float = 1.5,
    knee: float = 0.1,
    *,
    gain: Argument = 1.0,
    zero: Zero = "one",
) -> Tensor:
    """The nearest of n equidistant values on [-1, 1]; equations at the top of this module.

    Args:
        x: any shape.
        power: o >= 1, 0-d; as in `functional.reste_sign`.
        levels: n >= 2.
        threshold, knee, gain: as in `functional.reste_sign`, of u.
        zero: what a tie gives: "one" the upper value, "zero" the mean of the two.

    Returns:
        The values in the dtype and shape of `x`; NaN becomes the upper value (or the mean) of the lowest threshold.

    Raises:
        ValueError: a number `power` below 1, `knee` outside (0, threshold], or an unknown `zero`.
    """
    require_knee(knee, threshold)
    values = partial(_level_values, levels=levels, zero=zero)
    return surrogate(x, values, partial(levels_slope, levels=levels), power, threshold, knee, gain)


def levels_curve(
    x: Tensor, power: Argument, threshold: float = 1.5, knee: float = 0.1, gain: Argument = 1.0, *, levels: int = 2
) -> Tensor:
    """f(x) of `reste_levels`, times `gain`; dtype and shape of `x`."""
    centre, u = _cells(widen(x), levels)
    return ((centre + reste_curve(u, power, threshold, knee)) * gain / (levels - 1)).to(x.dtype)


def levels_slope(
    x: Tensor, power: Argument, threshold: float = 1.5, knee: float = 0.1, gain: Argument = 1.0, *, levels: int = 2
) -> Tensor:
    """g(x) of `reste_levels`, in float32 or better."""
    _, u = _cells(widen(x), levels)
    return reste_slope(u, power, threshold, knee, gain=gain)


@lru_cache(maxsize=64)
def levels_gain(power: float, levels: int = 2, threshold: float = 1.5, knee: float = 0.1) -> float:
    """`curves.reste_gain` for n levels: c(o) = r(1) / r(o) with r(o)^2 = E g(z)^2, z ~ N(0, 1).

    Raises:
        ValueError: an option out of its range.
    """
    require_power(power)
    require_knee(knee, threshold)
    require_levels(levels)
    if levels == 2:
        return reste_gain(power, threshold, knee)
    mean_squares = (_mean_square(o, levels, threshold, knee) for o in (1.0, power))
    return math.sqrt(next(mean_squares) / next(mean_squares))


def _mean_square(power: float, levels: int, threshold: float, knee: float) -> float:
    """E g(z)^2: both sides of every threshold, from 0 to the knee in closed form, from there on by Simpson's rule."""
    half, total = 1 / (levels - 1), 0.0
    for place in range(levels - 1):
        centre = (2 * place - (levels - 2)) * half
        for side in (-1, 1):
            outer = place == (0 if side < 0 else levels - 2)
            end = threshold if outer else 1.0
            flat = min(knee, end)
            bounds = sorted((centre, centre + side * half * flat))
            chord = (math.erf(bounds[1] / math.sqrt(2)) - math.erf(bounds[0] / math.sqrt(2))) / 2
            total += _flat_square(power, knee) * chord
            total += half / power**2 * _root_square(power, centre, side * half, flat, end)
    return total


def _flat_square(power: float, knee: float) -> float:
    """g^2 within the knee."""
    return knee ** (2 / power - 2)


def _root_square(power: float, centre: float, half: float, start: float, end: float, intervals: int = 64) -> float:
    """The integral of u^(2/o - 2) times the normal density at centre + half u, over u from `start` to `end`."""
    width = math.log(end / start) / intervals
    points = [start * math.exp(i * width) for i in range(intervals + 1)]
    values = [u ** (2 / power - 1) * math.exp(-((centre + half * u) ** 2) / 2) for u in points]
    simpson = values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2])
    return simpson * width / 3 / math.sqrt(2 * math.pi)


def _cells(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """(n-1) c, a whole number from 2-n to n-2, and u; both in the shape of `x`, float32 or better."""
    steps = levels - 1
    place = ((x.detach() + 1) * (steps / 2)).floor().clamp(0, steps - 1)
    centre = torch.where(x.isnan(), 0, 2 * place) - (levels - 2)
    return centre, (x - centre / steps) * steps


def _level_values(x: Tensor, *, levels: int, zero: Zero) -> Tensor:
    centre, u = _cells(widen(x.detach()), levels)
    # Whole numbers, divided once: the levels are symmetric and exact to the last bit.
    return ((centre + binary_sign(u, zero=zero)) / (levels - 1)).to(x.dtype)


def _steps(x: Tensor, *, thresholds: tuple[float, ...], zero: Zero) -> Tensor:
    require_zero(zero)
    total = reduce(torch.add, (binary_sign(x.detach() - c, zero=zero) for c in thresholds))
    return (total + len(thresholds)) / (2 * len(thresholds))
