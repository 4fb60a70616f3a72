"""Schedules of the power: pure maps from progress in [0, 1] to a power >= 1.

Progress is the caller's: (step / total steps) for a smooth schedule, (epoch / epochs) with a 0-based epoch
for the official code's, which therefore ends just short of `end`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from .curves import require_power
from .names import look_up

PowerSchedule = Callable[[float, float], float]
"""(progress, end) -> power."""

LayerOrder = Literal["together", "first", "last"]
"""Which layers' powers rise first: all at once, those near the input, or those near the output."""


def layer_progress(progress: float, depth: float, order: LayerOrder) -> float:
    """The progress that holds for one layer: the layers take their turns, each over half of the training.

        "first"    clamp(2p - d, 0, 1)        "last"    clamp(2p - (1 - d), 0, 1)        "together"    p

    Args:
        progress: p, of the training, in [0, 1].
        depth: d, of the layer: 0 for the first one, 1 for the last one.
        order: see `LayerOrder`.

    Raises:
        ValueError: an argument out of its range.
    """
    for name, value in (("progress", progress), ("depth", depth)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if order not in get_args(LayerOrder):
        raise ValueError(f"order must be one of {', '.join(get_args(LayerOrder))}; got {order!r}")
    if order == "together":
        return progress
    wait = depth if order == "first" else 1.0 - depth
    return min(max(2.0 * progress - wait, 0.0), 1.0)


def steer_power(power: float, measured: float, wanted: float, end: float) -> float:
    """The power after a measurement of something that grows with it: a controller that holds it at a set value.

        o' = clamp(o r, 1, end),    r = sqrt(wanted / measured), held in [0.8, 1.25]

    The root keeps it from overshooting where the measured value grows faster than the power, the bounds where a
    measurement is far off. A value that is not finite or not above 0 says nothing: o' = o.

    Args:
        power: o, >= 1.
        measured: what was found at this power, e.g. the gradient instability.
        wanted: where it is to be held, > 0.
        end: the largest power, >= 1.

    Raises:
        ValueError: an argument out of its range.
    """
    require_power(power)
    require_power(end)
    if not 0 < wanted < math.inf:
        raise ValueError(f"wanted must be > 0, got {wanted}")
    if not 0 < measured < math.inf:
        return power
    ratio = min(max(math.sqrt(wanted / measured), 0.8), 1.25)
    return min(max(power * ratio, 1.0), end)


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
