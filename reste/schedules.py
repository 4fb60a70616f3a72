"""Schedules of the power: pure maps from progress in [0, 1] to a power >= 1.

Progress is the caller's: (step / total steps) for a smooth schedule, (epoch / epochs) with a 0-based epoch
for the official code's, which therefore ends just short of `end`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .curves import require_power
from .names import look_up

PowerSchedule = Callable[[float, float], float]
"""(progress, end) -> power."""


def cosine_power(progress: float, end: float) -> float:
    """o(p) = 1 + (1 - cos(pi/2 p)) (end - 1): slow at first, then nearly linear (ReSTE's official code).

    Args:
        progress: in [0, 1].
        end: the power at progress 1; >= 1.

    Raises:
        ValueError: an argument out of its range.
    """
    _require(progress, end)
    return 1.0 + (1.0 - math.cos(math.pi / 2 * progress)) * (end - 1.0)


def linear_power(progress: float, end: float) -> float:
    """o(p) = 1 + p (end - 1). Arguments and errors as in `cosine_power`."""
    _require(progress, end)
    return 1.0 + progress * (end - 1.0)


def constant_power(progress: float, end: float) -> float:
    """o(p) = end. Arguments and errors as in `cosine_power`."""
    _require(progress, end)
    return float(end)


POWER_SCHEDULES: dict[str, PowerSchedule] = {
    "constant": constant_power,
    "cosine": cosine_power,
    "linear": linear_power,
}


def power_schedule(name: str) -> PowerSchedule:
    """The schedule called `name`.

    Raises:
        ValueError: no such schedule; the message names the known ones.
    """
    return look_up(POWER_SCHEDULES, name, kind="power schedule")


def _require(progress: float, end: float) -> None:
    require_power(end)
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must be in [0, 1], got {progress}")
