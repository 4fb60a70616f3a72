"""What DALI is told about each batch: file names or contents as bytes, image sizes and where to cut, as arrays."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from trainer.data.background import ordered_map
from trainer.data.geometry import GeometryKind
from trainer.data.index import Index
from trainer.data.order import Plan
from trainer.data.storage import Bytes, Files, Shards
from trainer.errors import DataError

Fault = Callable[[int, str], DataError]

_READERS = 8
_CHUNK = 16


class Feed(Protocol):
    """What stands for the images of a batch."""

    gives_names: bool

    def each(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, list[Bytes]]]:
        """Every plan with the names or the contents of its samples.

        Raises:
            DataError: a sample cannot be read.
        """
        ...

    def close(self) -> None:
        """Stop threads."""
        ...


def create_feed(index: Index, storage: Files | Shards, *, fault: Fault) -> Feed:
    """Names of files, which DALI reads itself; contents where samples lie in tar files."""
    return Names(storage) if isinstance(storage, Files) else Contents(index, storage, fault)


class Names:
    """File names."""

    gives_names = True

    def __init__(self, files: Files) -> None:
        self._files = files

    def each(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, list[Bytes]]]:
        """Every plan with the names of its files."""
        for plan in plans:
            yield plan, self._files.names(plan.ids)

    def close(self) -> None:
        """No threads."""


class Contents:
    """Contents, read ahead by a pool of threads into one piece of memory per batch."""

    gives_names = False

    def __init__(self, index: Index, shards: Shards, fault: Fault) -> None:
        self._lengths = index.bytes
        self._shards = shards
        self._fault = fault
        self._executor = ThreadPoolExecutor(_READERS, thread_name_prefix="read")

    def each(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, list[Bytes]]]:
        """Chunks of samples go to the threads; a batch is handed out when the last chunk of it is read."""
        for plan, views, stop in ordered_map(self._executor, self._fill, self._chunks(plans), window=2 * _READERS):
            if stop == len(plan.ids):
                yield plan, views

    def _chunks(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, list[Bytes], int, int]]:
        for plan in plans:
            ends = np.cumsum(self._lengths[plan.ids])
            views = np.split(np.empty(ends[-1] if len(ends) else 0, np.uint8), ends[:-1]) if len(ends) else []
            for start in range(0, max(len(views), 1), _CHUNK):
                yield plan, views, start, min(start + _CHUNK, len(views))

    def _fill(self, chunk: tuple[Plan, list[Bytes], int, int]) -> tuple[Plan, list[Bytes], int]:
        plan, views, start, stop = chunk
        for position in range(start, stop):
            sample = int(plan.ids[position])
            try:
                self._shards.read_into(sample, views[position])
            except OSError as error:
                raise self._fault(sample, error.strerror or str(error)) from error
        return plan, views, stop

    def close(self) -> None:
        """Stop the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class Source:
    """What DALI calls for the next batch: bytes and some arrays; keeps the plans that are under way.

    With contents DALI reads the very memory that is given here, so that a batch's arrays are held until its
    output has been taken, and those of an abandoned stream until the next one has begun.

    Args:
        feed: names or contents.
        kind: kind of the plans' geometry.
        resizes: DALI resizes, and is told how.
        one_by_one: each sample as a batch of its own.
    """

    def __init__(self, feed: Feed, kind: GeometryKind, *, resizes: bool, one_by_one: bool = False) -> None:
        self.gives_names = feed.gives_names
        self._feed = feed
        self._kind = kind
        self._resizes = resizes
        self._one_by_one = one_by_one
        self._pending: deque[tuple[Plan, tuple[Any, ...]]] = deque()
        self.begin(())

    def begin(self, plans: Iterable[Plan]) -> None:
        """Forget everything and go on with `plans`."""
        self._abandoned, self._pending = self._pending, deque()
        self.error: BaseException | None = None
        self._inputs = self._each_alone(plans) if self._one_by_one else self._each(plans)

    @property
    def under_way(self) -> list[Plan]:
        """The plans whose batches have not been taken."""
        return [plan for plan, _ in self._pending]

    @property
    def head(self) -> Plan:
        """The plan whose output comes next."""
        return self._pending[0][0]

    def take(self) -> Plan:
        """Remove and return the plan at the head of those under way; DALI is done with its arrays."""
        return self._pending.popleft()[0]

    def take_empty(self) -> Iterator[Plan]:
        """Remove and return the empty plans at the head of those under way."""
        while self._pending and not len(self._pending[0][0].ids):
            yield self.take()

    def __call__(self) -> tuple[Any, ...]:
        try:
            return next(self._inputs)
        except StopIteration:
            raise
        except BaseException as error:  # must not end in DALI; raised again after what came before it
            self.error = error
            raise StopIteration from error

    def _each(self, plans: Iterable[Plan]) -> Iterator[tuple[Any, ...]]:
        for plan, given in self._feed.each(plans):
            arrays = (given, *self._where(plan))
            self._pending.append((plan, arrays))
            if given:
                yield arrays

    def _each_alone(self, plans: Iterable[Plan]) -> Iterator[tuple[Any, ...]]:
        for plan, given in self._feed.each(plans):
            around = self._where(plan)
            for position in range(len(given)):
                here = slice(position, position + 1)
                arrays = (given[here], *(array[here] for array in around))
                self._pending.append((plan, arrays))
                yield arrays

    def _where(self, plan: Plan) -> tuple[Any, ...]:
        """Indexed sizes; windows; how to resize: what `kind` and `resizes` ask for."""
        geometry = plan.geometry
        sizes = np.stack([plan.heights, plan.widths], axis=1)
        sides = np.full((len(plan.ids), 2), geometry.size)
        if self._kind == "window":
            start, shape = np.ascontiguousarray(geometry.windows[:, :2]), np.ascontiguousarray(geometry.windows[:, 2:])
            return (sizes, start, shape, sides.astype(np.float32))[: 4 if self._resizes else 3]
        how = (geometry.sizes.astype(np.float32), np.ascontiguousarray(geometry.offsets), sides.astype(np.int32))
        return (sizes, *how) if self._resizes else (sizes,)
