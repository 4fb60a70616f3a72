"""The stream of training batches, with an account of the time: how long it took, how much of it was spent waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from trainer.data.batch import Batch
from trainer.distributed import statistics
from trainer.pulse import Pulse


@dataclass(frozen=True)
class Pace:
    """A window of training.

    Attributes:
        seconds: its length, evaluations and saves left out.
        waited_s: seconds of it spent waiting for data.
        computed_s: seconds of it in forward passes, waits for other ranks left out as far as the host sees them.
        samples: training samples of all ranks.
        steps: optimizer steps.
    """

    seconds: float
    waited_s: float
    computed_s: float
    samples: int
    steps: int

    def metrics(self) -> dict[str, float]:
        """Under the names of the journal; data wait is a share of the time, 0 to 1."""
        seconds = max(self.seconds, 1e-9)
        return {
            "perf/images_per_s": self.samples / seconds,
            "perf/data_wait": self.waited_s / seconds,
            "perf/step_time_s": seconds / max(self.steps, 1),
        }


class Feed:
    """Takes batches from a loader and keeps time.

    Args:
        batches: of this rank.
        pulse: told of every batch asked for and got.
    """

    def __init__(self, batches: Iterator[Batch], pulse: Pulse) -> None:
        self._batches = batches
        self._pulse = pulse
        self._start()

    def _start(self) -> None:
        self._since = time.perf_counter()
        self._waited_s = 0.0
        self._computed_s = 0.0
        self._samples = 0
        self._steps = 0

    def take(self) -> Batch:
        """The next micro-batch."""
        self._pulse.beat("waiting for data")
        asked = time.perf_counter()
        batch = next(self._batches)
        self._given = time.perf_counter()
        self._waited_s += self._given - asked
        self._others_s = statistics.waited_s()
        self._pulse.beat("computing")
        self._samples += batch.plan.global_count
        self._steps += batch.plan.micro == 0
        return batch

    def forwarded(self) -> None:
        """The forward pass of the batch taken last is done."""
        others_s = statistics.waited_s() - self._others_s
        self._computed_s += time.perf_counter() - self._given - others_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of an evaluation or a save out of the window."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - start

    def read(self) -> Pace:
        """The window so far; starts a new one."""
        pace = Pace(time.perf_counter() - self._since, self._waited_s, self._computed_s, self._samples, self._steps)
        self._start()
        return pace
