"""Finding the rank that the others wait for.

All ranks take equally long for a step, since they meet in it. What tells them apart is the time of their own: waiting
for data, and the forward pass without its waits for others.
"""

from __future__ import annotations

import logging
from statistics import median_low

from trainer.distributed import collectives
from trainer.feed import Pace

log = logging.getLogger(__name__)
RATIO = 1.5
"""A rank is slow if its own time is this many times the median one."""
SHARE = 0.05
"""And if what it has more than the median is at least this share of a step."""
PATIENCE = 3
"""Windows in a row before it is named."""


class Stragglers:
    """Compares the ranks at every log step and names a slow one once.

    Args:
        hosts: of all ranks.
    """

    def __init__(self, hosts: list[str]) -> None:
        self._hosts = hosts
        self._in_a_row: dict[tuple[int, str], int] = {}
        self._named: set[tuple[int, str]] = set()

    def observe(self, pace: Pace) -> dict[str, float]:
        """Gather the ranks' own times of a window, and warn; metrics, none in a world of one. A collective."""
        if len(self._hosts) == 1 or pace.steps == 0:
            return {}
        times = collectives.gather_numbers([pace.waited_s / pace.steps, pace.computed_s / pace.steps])
        step_s = pace.seconds / pace.steps
        own = [data_s + compute_s for data_s, compute_s in times]
        slowest = max(range(len(own)), key=own.__getitem__)
        self._count(times, step_s)
        return {"perf/slowest_rank": slowest, "perf/slowest_ratio": own[slowest] / max(median_low(own), 1e-9)}

    def _count(self, times: list[list[float]], step_s: float) -> None:
        for column, what in enumerate(("waiting for data", "the forward pass")):
            usual = median_low([row[column] for row in times])
            for rank, row in enumerate(times):
                slow = row[column] > RATIO * usual and row[column] - usual > SHARE * step_s
                key = (rank, what)
                self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if slow else 0
                if self._in_a_row[key] == PATIENCE and key not in self._named:
                    self._named.add(key)
                    log.warning(
                        "rank %d on %s holds the others up: %s takes it %.3f s a step, the median rank %.3f s",
                        *(rank, self._hosts[rank], what, row[column], usual),
                    )
