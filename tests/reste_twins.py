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
    """slope(x, power) and curve(x, power) of one estimator at its default options, on single numbers."""

    slope: Callable[[float, float], float]
    curve: Callable[[Tensor, float], Tensor]
    corners: tuple[float, ...]

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


TWINS = {
    "reste": Twin(_reste_slope, _reste_curve, (KNEE, THRESHOLD)),
    "ste": Twin(lambda x, power: float(-1 <= x <= 1), _ste_curve, (1.0,)),
    "identity": Twin(lambda x, power: 1.0, lambda x, power: x, ()),
    "approx_sign": Twin(lambda x, power: max(0.0, 2 - 2 * abs(x)), _approx_curve, (1.0,)),
}


def points_off_corners(twin: Twin, count: int = 400, seed: int = 0) -> Tensor:
    """Sorted float64 numbers in (-2, 2), none within 1e-6 of zero or of a corner of the twin's curve."""
    x = np.random.default_rng(seed).uniform(-2, 2, count)
    x = np.concatenate([x, x / 100])
    distance = np.min([np.abs(np.abs(x) - corner) for corner in (*twin.corners, 0.0)], axis=0)
    return torch.from_numpy(np.sort(x[distance > 1e-6]))
