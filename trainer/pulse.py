"""What a rank is doing and since when: written by the loop's helpers, read by the watchdog."""

from __future__ import annotations

import time


class Pulse:
    """A rank's signs of life. All ranks beat alike, so that the one with the fewest beats is behind.

    Attributes:
        beats: how many there were.
        since: time of the last one, in seconds of `time.monotonic`.
        doing: what began with it.
        step: completed optimizer steps.
        stepped: whether this process has completed one.
    """

    def __init__(self) -> None:
        self.beats = 0
        self.since = time.monotonic()
        self.doing = "starting up"
        self.step = 0
        self.stepped = False

    def beat(self, doing: str) -> None:
        """Something begins."""
        self.beats += 1
        self.since = time.monotonic()
        self.doing = doing

    def step_done(self, step: int) -> None:
        """An optimizer step is done."""
        self.step = step
        self.stepped = True
        self.beat("agreeing after a step")
