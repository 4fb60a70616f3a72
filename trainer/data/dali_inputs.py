"""What DALI is told about each batch: file names as bytes, and where to cut, as arrays."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.geometry import GeometryKind
from trainer.data.index import Index
from trainer.data.order import Plan


class Source:
    """What DALI calls for the next batch: file names and two arrays; keeps the plans that are under way."""

    def __init__(self, index: Index, root: Path, kind: GeometryKind, *, one_by_one: bool = False) -> None:
        self._paths = index.paths
        self._prefix = os.fsencode(root) + b"/"
        self._kind = kind
        self._one_by_one = one_by_one
        self.begin(())

    def begin(self, plans: Iterable[Plan]) -> None:
        """Forget everything and go on with `plans`."""
        self.pending: deque[Plan] = deque()
        self.error: BaseException | None = None
        self._inputs = self._each_alone(plans) if self._one_by_one else self._each(plans)

    def take_empty(self) -> Iterator[Plan]:
        """Remove and return the empty plans at the head of those under way."""
        while self.pending and not len(self.pending[0].ids):
            yield self.pending.popleft()

    def __call__(self) -> tuple[Any, ...]:
        try:
            return next(self._inputs)
        except StopIteration:
            raise
        except BaseException as error:  # must not end in DALI; raised again after what came before it
            self.error = error
            raise StopIteration from error

    def _each(self, plans: Iterable[Plan]) -> Iterator[tuple[Any, ...]]:
        for plan in plans:
            self.pending.append(plan)
            if len(plan.ids):
                yield self._arrays(plan, 0, len(plan.ids))

    def _each_alone(self, plans: Iterable[Plan]) -> Iterator[tuple[Any, ...]]:
        for plan in plans:
            for position in range(len(plan.ids)):
                yield self._arrays(plan, position, position + 1)

    def _arrays(self, plan: Plan, start: int, stop: int) -> tuple[Any, ...]:
        prefix, blob = self._prefix, self._paths.blob
        ids = plan.ids[start:stop]
        begins, ends = self._paths.offsets[ids].tolist(), self._paths.offsets[ids + 1].tolist()
        names = [
            np.frombuffer(prefix + blob[begin:end], dtype=np.uint8) for begin, end in zip(begins, ends, strict=True)
        ]
        if self._kind == "window":
            windows = plan.geometry.windows[start:stop]
            return names, np.ascontiguousarray(windows[:, :2]), np.ascontiguousarray(windows[:, 2:])
        return names, plan.geometry.sizes[start:stop].astype(np.float32), plan.geometry.offsets[start:stop]
