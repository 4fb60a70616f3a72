"""Finding the rank that the others wait for.

All ranks take equally long for a step, since they meet in it. What tells them apart is the time of their own: waiting
for data, the forward pass without its waits for others, and an exchange with each of two neighbours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from statistics import median_low

from trainer.distributed import collectives, links
from trainer.feed import Pace

log = logging.getLogger(__name__)
SHARE = 0.05
"""A rank is slow if what it has more than the median costs at least this share of a step."""
PATIENCE = 3
"""Windows in a row before it is named."""


@dataclass(frozen=True)
class Section:
    """A part of a step in which ranks are compared.

    Attributes:
        name: as the warning has it.
        ratio: a rank is slow from so many times the median on.
        scale: seconds of a step for each second measured.
    """

    name: str
    ratio: float
    scale: float = 1.0


class Stragglers:
    """Compares the ranks at every log step and names a slow one once.

    Args:
        hosts: of all ranks.
        gradient_bytes: that all ranks sum in a step.
    """

    def __init__(self, hosts: list[str], gradient_bytes: int) -> None:
        self._hosts = hosts
        self._sections = (
            Section("waiting for data", 1.5),
            Section("the forward pass", 1.5),
            # A ring's all-reduce sends and receives nearly twice the gradient. Short exchanges scatter more.
            Section("communication", 3.0, max(2 * gradient_bytes / links.PROBE_BYTES, 1.0)),
        )
        self._in_a_row: dict[tuple[int, str], int] = {}
        self._named: set[tuple[int, str]] = set()

    def observe(self, pace: Pace) -> dict[str, float]:
        """Gather the ranks' own times of a window, and warn; metrics, none in a world of one. A collective."""
        if len(self._hosts) == 1 or pace.steps == 0:
            return {}
        own = collectives.gather_numbers([pace.waited_s / pace.steps, pace.computed_s / pace.steps])
        times = [[*row, link_s] for row, link_s in zip(own, links.links_s(), strict=True)]
        self._count(times, pace.seconds / pace.steps)
        busy = [data_s + compute_s for data_s, compute_s in own]
        slowest = max(range(len(busy)), key=busy.__getitem__)
        return {
            "perf/slowest_rank": slowest,
            "perf/slowest_ratio": busy[slowest] / max(median_low(busy), 1e-9),
            "perf/slowest_link_s": max(link for _, _, link in times),
        }

    def _count(self, times: list[list[float]], step_s: float) -> None:
        for column, section in enumerate(self._sections):
            usual = median_low([row[column] for row in times])
            for rank, row in enumerate(times):
                excess = section.scale * (row[column] - usual)
                slow = row[column] > section.ratio * usual and excess > SHARE * step_s
                key = (rank, section.name)
                self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if slow else 0
                if self._in_a_row[key] == PATIENCE and key not in self._named:
                    self._named.add(key)
                    log.warning(
                        "rank %d on %s holds the others up: %s takes it %.3g s a step, the median rank %.3g s",
                        *(rank, self._hosts[rank], section.name, section.scale * row[column], section.scale * usual),
                    )
