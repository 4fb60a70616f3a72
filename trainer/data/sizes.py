"""How large training images are, epoch by epoch: progressive resizing."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.cadence import duration_epochs

MOST = 8
"""Sizes of one training: a compiler keeps a graph for each, and torch.compile gives up beyond eight."""


@dataclass(frozen=True)
class ImageSizes:
    """A side length, in pixels, for every epoch of training.

    Attributes:
        starts: 0-based epochs from which on a side holds; rising, the first is 0.
        sides: pixels, one for each start.
    """

    starts: tuple[int, ...]
    sides: tuple[int, ...]

    def at(self, epoch: int) -> int:
        """Pixels of an epoch."""
        return self.sides[bisect_right(self.starts, epoch) - 1]

    @property
    def distinct(self) -> tuple[int, ...]:
        """Every side once, the largest first."""
        return tuple(sorted(set(self.sides), reverse=True))

    def pixels(self, epochs: int) -> float:
        """Mean pixels of an image over so many epochs."""
        return sum(self.at(epoch) ** 2 for epoch in range(epochs)) / epochs

    def words(self, epochs: int) -> str:
        """The schedule for people; epochs count from 1 there."""
        ends = [*self.starts[1:], epochs]
        spans = [(side, first + 1, end) for side, first, end in zip(self.sides, self.starts, ends, strict=True)]
        return ", ".join(f"{side} px in epochs {first} to {end}" for side, first, end in spans)


def image_sizes(schedule: Sequence[tuple[str, int]], image_size: int, epochs: int) -> ImageSizes:
    """The sides that a configuration asks for.

    Args:
        schedule: pairs of a duration, in epochs or as a share of training, and the side from then on. A duration that
            ends within an epoch takes effect when the next one begins. Empty: `image_size` throughout.
        image_size: pixels.
        epochs: of the whole training.

    Raises:
        ValueError: the durations do not rise from 0 to less than the whole training, two of them take effect in the
            same epoch, or there are too many sides.
    """
    if not schedule:
        return ImageSizes((0,), (image_size,))
    starts = tuple(math.ceil(duration_epochs(when, epochs)) for when, _ in schedule)
    sizes = ImageSizes(starts, tuple(side for _, side in schedule))
    if starts[0] != 0:
        raise ValueError(f"must begin at 0ep, not at {schedule[0][0]}")
    for (when, _), start, before in zip(schedule[1:], starts[1:], starts, strict=False):
        if start <= before:
            raise ValueError(f"{when} must begin in a later epoch than the entry before it (of {epochs} epochs)")
    if starts[-1] >= epochs:
        raise ValueError(f"{schedule[-1][0]} begins after the last of {epochs} epochs")
    if len(sizes.distinct) > MOST:
        raise ValueError(f"has {len(sizes.distinct)} different sizes, at most {MOST} are possible")
    return sizes
