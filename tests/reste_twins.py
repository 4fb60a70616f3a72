"""The estimators' mathematics a second time: number by number, in plain Python, from the papers' formulas.

Nothing here imports `reste` or shares its shape: branches instead of masks, exp and log instead of powers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

THRESHOLD, KNEE = 1.5, 0.1
POWERS = (1.0, 1.25, 2.0, 2.984, 3.0, 10.0)


@dataclass(frozen=True)
class Twin:
    """One estimator at its default options, on single numbers, before training.

    Attributes:
        slope, curve: of x and power.
        corners: |x| where the slope is not continuous.
        value: what the forward pass gives.
        has_power: whether slope and curve depend on the power.
        odd: whether curve(-x) = -curve(x).
        steepest: the largest slope at power 3.
    """

    slope: Callable[[float, float], float]
    curve: Callable[[Tensor, float], Tensor]
    corners: tuple[float, ...] = ()
    value: Callable[[float], float] = lambda x: -1.0 if x < 0 else 1.0
    has_power: bool = False
    odd: bool = True
    steepest: float = 2.0

    def slopes(self, x: np.ndarray, power: float) -> np.ndarray:
        """The slope at every entry of `x`, in float64."""
        return np.array([self.slope(float(value), power) for value in x.ravel()]).reshape(x.shape)

    def curves(self, x: Tensor, power: float) -> Tensor:
        """The curve at every entry of the vector `x`, differentiable."""
        return torch.stack([self.curve(value, power) for value in x])


def _reste_slope(x: float, power: float) -> float:
    size = abs(x)
    if size > THRESHOLD:
        return 0.0
    if size <= KNEE:
        return KNEE ** (1 / power) / KNEE
    return math.exp(math.log(size) * (1 / power - 1)) / power


def _reste_curve(x: Tensor, power: float) -> Tensor:
    size = abs(x.item())
    if size > THRESHOLD:
        return 0 * x + math.copysign(THRESHOLD ** (1 / power), x.item())
    if size <= KNEE:
        return x / KNEE * KNEE ** (1 / power)
    return math.copysign(1, x.item()) * torch.exp(torch.log(x * math.copysign(1, x.item())) / power)


def _ste_curve(x: Tensor, power: float) -> Tensor:
    return x if abs(x.item()) <= 1 else 0 * x + math.copysign(1, x.item())


def _approx_curve(x: Tensor, power: float) -> Tensor:
    if x.item() < -1:
        return 0 * x - 1
    if x.item() < 0:
        return 2 * x + x**2
    if x.item() < 1:
        return 2 * x - x**2
    return 0 * x + 1


T_MIN, K = float(np.float32(0.1)), float(np.float32(1 / 0.1))
BETA, ALPHA, OMEGA, TERMS = 5.0, 0.2, 0.1, 10
STEEP = math.log(2 / ALPHA - 1) / 2


def _tanh_slope(x: float, times: float = 1.0) -> float:
    return times * 4 / (math.exp(times * x) + math.exp(-times * x)) ** 2


def _tanh_curve(x: Tensor, times: float = 1.0) -> Tensor:
    rising, falling = torch.exp(times * x), torch.exp(-times * x)
    return (rising - falling) / (rising + falling)


def _swish_slope(x: float, power: float) -> float:
    u = BETA * x
    return BETA * (2 - u * math.tanh(u / 2)) / (1 + math.cosh(u))


def _swish_curve(x: Tensor, power: float) -> Tensor:
    logistic = 1 / (1 + torch.exp(-BETA * x))
    return 2 * logistic * (1 + BETA * x * (1 - logistic)) - 1


def _dsq_slope(x: float, power: float) -> float:
    return _tanh_slope(x, STEEP) / (1 - ALPHA) if abs(x) <= 1 else 0.0


def _dsq_curve(x: Tensor, power: float) -> Tensor:
    return _tanh_curve(x, STEEP) / (1 - ALPHA) if abs(x.item()) <= 1 else 0 * x + math.copysign(1, x.item())


def _fourier_slope(x: float, power: float) -> float:
    if abs(x) > 1:
        return 0.0
    return 4 * OMEGA / math.pi * math.fsum(math.cos((2 * i + 1) * OMEGA * x) for i in range(TERMS))


def _fourier_curve(x: Tensor, power: float) -> Tensor:
    inside = x if abs(x.item()) <= 1 else 0 * x + math.copysign(1, x.item())
    odd_numbers = range(1, 2 * TERMS, 2)
    return 4 / math.pi * torch.stack([torch.sin(n * OMEGA * inside) / n for n in odd_numbers]).sum()


def _unit_curve(x: Tensor, power: float) -> Tensor:
    return x if 0 < x.item() < 1 else 0 * x + float(x.item() > 0.5)


def _rational_slope(x: float, power: float) -> float:
    if abs(x) > THRESHOLD:
        return 0.0
    c = math.inf if power == 1 else 1 / (power - 1)
    return 1.0 if power == 1 else (1 + c) * c / (abs(x) + c) ** 2


def _rational_curve(x: Tensor, power: float) -> Tensor:
    held = x if abs(x.item()) <= THRESHOLD else 0 * x + math.copysign(THRESHOLD, x.item())
    return held if power == 1 else held * (1 + 1 / (power - 1)) / (abs(held) + 1 / (power - 1))


def _ternary(x: float) -> float:
    return -1.0 if x < -0.5 else 0.0 if x < 0.5 else 1.0


def _levels_slope(x: float, power: float) -> float:
    return _reste_slope((abs(x) - 0.5) / 0.5, power)


def _levels_curve(x: Tensor, power: float) -> Tensor:
    centre = math.copysign(0.5, x.item())
    return centre + 0.5 * _reste_curve((x - centre) / 0.5, power)


def _duo(x: float) -> float:
    return 0.0 if x < 0.25 else 0.5 if x < 0.75 else 1.0


STEEPEST = KNEE ** (-2 / 3)
TWINS = {
    "reste": Twin(_reste_slope, _reste_curve, (KNEE, THRESHOLD), has_power=True, steepest=STEEPEST),
    "ste": Twin(lambda x, power: float(-1 <= x <= 1), _ste_curve, (1.0,)),
    "identity": Twin(lambda x, power: 1.0, lambda x, power: x),
    "approx_sign": Twin(lambda x, power: max(0.0, 2 - 2 * abs(x)), _approx_curve, (1.0,)),
    "tanh": Twin(lambda x, power: _tanh_slope(x), lambda x, power: _tanh_curve(x)),
    "ede": Twin(lambda x, power: K * _tanh_slope(x, T_MIN), lambda x, power: K * _tanh_curve(x, T_MIN)),
    "swish_sign": Twin(_swish_slope, _swish_curve, steepest=BETA),
    "dsq": Twin(_dsq_slope, _dsq_curve, (1.0,)),
    "fda": Twin(_fourier_slope, _fourier_curve, (1.0,)),
    "relu_ste": Twin(lambda x, power: float(x > 0), lambda x, power: x if x.item() > 0 else 0 * x, odd=False),
    "clipped_relu_ste": Twin(lambda x, power: float(0 < x < 1), _unit_curve, (1.0,), odd=False),
    "rational": Twin(_rational_slope, _rational_curve, (THRESHOLD,), has_power=True, steepest=3.0),
    "reste_levels": Twin(
        _levels_slope, _levels_curve, (0.45, 0.5, 0.55, 1.25), _ternary, has_power=True, steepest=STEEPEST
    ),
    "heaviside": Twin(lambda x, power: float(0 < x < 1), _unit_curve, (1.0,), lambda x: float(not x < 0.5), odd=False),
    "ternary_duo": Twin(lambda x, power: float(0 < x < 1), _unit_curve, (1.0,), _duo, odd=False),
}


def points_off_corners(twin: Twin, count: int = 400, seed: int = 0) -> Tensor:
    """Sorted float64 numbers in (-2, 2), none within 1e-6 of zero or of a corner of the twin's curve."""
    x = np.random.default_rng(seed).uniform(-2, 2, count)
    x = np.concatenate([x, x / 100])
    distance = np.min([np.abs(np.abs(x) - corner) for corner in (*twin.corners, 0.0)], axis=0)
    return torch.from_numpy(np.sort(x[distance > 1e-6]))
