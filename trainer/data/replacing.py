"""Training that goes on without the images that cannot be read: a loader around any other."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from trainer.data.batch import Batch, Loader
from trainer.data.faults import UnreadableError
from trainer.data.order import Plan, TrainOrder
from trainer.data.quarantine import Finding

log = logging.getLogger(__name__)


class Replacing:
    """Puts samples that fail twice into the order's quarantine and draws the plans that are under way again.

    A loader is of no use after an error but to load anew: it is given the plans that it had drawn and not delivered,
    as they are without the sample, and then those that follow.

    Args:
        loader: does the work.
        order: where the plans come from; its quarantine grows.
        root: the data root; if it is gone as a whole, no image is to blame.
        limit: samples to find before giving up alone; ranks that log count theirs together.
        rank: named in findings.
    """

    def __init__(self, loader: Loader, order: TrainOrder, root: Path, *, limit: int, rank: int) -> None:
        self._loader = loader
        self._order = order
        self._root = root
        self._limit = limit
        self._rank = rank
        self._found = 0

    def load(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        """Batches of `plans`, some samples replaced; made ahead from this call on.

        Raises:
            DataError: too many samples cannot be read, or the data root is gone.
        """
        source, waiting = iter(plans), deque[Plan]()
        return self._go_on(source, waiting, self._loader.load(_drawn(source, waiting)))

    def close(self) -> None:
        """Close the loader."""
        self._loader.close()

    def _go_on(self, source: Iterator[Plan], waiting: deque[Plan], batches: Iterator[Batch]) -> Iterator[Batch]:
        failed: set[int | None] = set()
        while True:
            try:
                for batch in batches:
                    waiting.popleft()
                    failed.clear()
                    yield batch
                return
            except UnreadableError as error:
                self._judge(error, waiting, failed)
            # The thread that drew from the source has ended with its error.
            again = [self._order.again(plan) for plan in waiting]
            waiting = deque()
            batches = self._loader.load(_drawn(chain(again, source), waiting))

    def _judge(self, error: UnreadableError, waiting: Iterable[Plan], failed: set[int | None]) -> None:
        """Let a first failure pass, for reads fail now and then; leave the sample out at the second."""
        if error.sample not in failed:
            failed.add(error.sample)
            log.info("reading again: %s", error)
            return
        if error.sample is None or not self._root.is_dir():
            raise error
        step = next(plan.step for plan in waiting if error.sample in plan.ids)
        self._order.quarantine.add([Finding(error.sample, error.path, error.reason, step, self._rank)])
        log.info("left out: %s", error)
        self._found += 1
        if self._found > self._limit:
            self._order.quarantine.check(self._limit)


def _drawn(source: Iterable[Plan], waiting: deque[Plan]) -> Iterator[Plan]:
    for plan in source:
        waiting.append(plan)
        yield plan
