"""Durations such as `5ep`, `500` or `2%`, and the one predicate that decides when something is due."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator

_FORM = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ep|%|)")


def _parse(value: object) -> tuple[float, str]:
    match = _FORM.fullmatch(str(value).strip()) if isinstance(value, str | int) else None
    if match is None or isinstance(value, bool):
        raise ValueError("must be a duration: epochs as 5ep, steps as 500, or a share of training as 2%")
    number, unit = float(match["number"]), match["unit"]
    if unit == "" and not number.is_integer():
        raise ValueError("must be a whole number of steps, or epochs as 0.5ep")
    return number, unit


def _canonical(value: object) -> str:
    number, unit = _parse(value)
    return f"{number:g}{unit}" if unit else str(int(number))


Duration = Annotated[str, BeforeValidator(_canonical)]
"""A span of training, written `5ep` (epochs), `500` (steps) or `2%` (of all steps); `0` means never."""


def _average(value: object) -> float | str:
    if isinstance(value, float) and 0 <= value < 1:
        return value
    try:
        return _canonical(value)
    except ValueError:
        raise ValueError("must be a span as 1ep or 500 (steps), or a decay as 0.999, below 1") from None


Average = Annotated[float | str, BeforeValidator(_average)]
"""How far a moving average reaches back: a span as `Duration`, or its decay, in [0, 1)."""


def decay(average: float | str, steps_per_epoch: int, total_steps: int) -> float:
    """The decay d of a moving average a <- d a + (1 - d) x whose span is 1 / (1 - d) steps.

    Args:
        average: as `Average`.
        steps_per_epoch: as for `duration_steps`.
        total_steps: as for `duration_steps`.
    """
    if isinstance(average, str):
        return 1 - 1 / max(duration_steps(average, steps_per_epoch, total_steps), 1)
    return average


def duration_steps(duration: str, steps_per_epoch: int, total_steps: int) -> int:
    """A duration in whole steps; a duration above zero is never rounded down to zero.

    Args:
        duration: as `Duration`.
        steps_per_epoch: optimizer steps in one epoch.
        total_steps: optimizer steps in the whole training.
    """
    number, unit = _parse(duration)
    scale = {"ep": steps_per_epoch, "%": total_steps / 100, "": 1}[unit]
    steps = round(number * scale)
    return max(steps, 1) if number > 0 else 0


def duration_epochs(duration: str, epochs: int) -> float:
    """A duration in epochs.

    Args:
        duration: as `Duration`, but no number of steps.
        epochs: of the whole training.

    Raises:
        ValueError: it is a number of steps.
    """
    number, unit = _parse(duration)
    if unit == "" and number:
        raise ValueError(f"must be epochs as 5ep, or a share of training as 65%, not {duration} steps")
    return number * epochs / 100 if unit == "%" else number


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` steps is due after `step` completed steps (never if 0)."""
    return every > 0 and step > 0 and step % every == 0
