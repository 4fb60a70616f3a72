"""The measurement itself: contestants timed in turn, the ratios of each round, and what they should be."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from trainer.processes import children, cpu_seconds

Work = Callable[[], object]
WARM_UP = 2
"""Unmeasured rounds: compilers, caches and allocators settle in them."""
CALLS = 20
"""Of something short, in one measurement."""


@dataclass(frozen=True)
class Goal:
    """What a ratio must be, and what it aims at.

    Attributes:
        must, aim: the two figures.
        better: whether higher or lower ratios are the better ones.
    """

    must: float
    aim: float
    better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class Row:
    """One ratio: the other's over ours where higher is better, so that it is a rate; ours over the other's elsewhere.

    Attributes:
        row: name that `reste bench` takes.
        what: the two sides, in words.
        where: on what, such as sizes and precision.
        median, lowest, highest: the ratio over the rounds.
        ours, other: medians of the two sides.
        unit: of these two.
        better, must, aim: the goal; None where there is none.
    """

    row: str
    what: str
    where: str
    median: float
    lowest: float
    highest: float
    ours: float
    other: float
    unit: str = "ms"
    better: Literal["higher", "lower"] = "higher"
    must: float | None = None
    aim: float | None = None

    @property
    def reached(self) -> str:
        """`aim`, `must` or `missed`; empty without a goal."""
        if self.must is None or self.aim is None:
            return ""
        sign = 1 if self.better == "higher" else -1
        if sign * self.median >= sign * self.aim:
            return "aim"
        return "must" if sign * self.median >= sign * self.must else "missed"


def ratio(
    row: str,
    what: str,
    where: str,
    ours: list[float],
    other: list[float],
    goal: Goal | None = None,
    *,
    better: Literal["higher", "lower"] = "higher",
    unit: str = "ms",
) -> Row:
    """The ratios of two contestants, round by round.

    Args:
        row, what, where: as in `Row`.
        ours, other: a figure of each round, in the same order and in `unit`.
        goal: what the ratio should be.
        better: without a goal, which ratios are the better ones.
        unit: of the figures.
    """
    better = better if goal is None else goal.better
    pairs = zip(ours, other, strict=True)
    ratios = [b / a if better == "higher" else a / b for a, b in pairs]
    return Row(
        row,
        what,
        where,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(ours),
        statistics.median(other),
        unit,
        better,
        None if goal is None else goal.must,
        None if goal is None else goal.aim,
    )


@dataclass(frozen=True)
class Bench:
    """How things are measured here.

    Attributes:
        device: where networks run.
        dtype: of autocast for networks; None: float32 throughout.
        repeats: measured rounds.
        quick: tiny sizes and no code generation, to see that all runs.
        processor: count the time of processors instead of the clock's, for machines that others use too.
    """

    device: torch.device
    dtype: torch.dtype | None = None
    repeats: int = 7
    quick: bool = False
    processor: bool = False

    @property
    def is_cuda(self) -> bool:
        """Whether networks run on a GPU."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """The precision of networks, in a word."""
        return {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    def race(self, contestants: Mapping[str, Work], *, calls: int = 1, lead: bool = False) -> dict[str, list[float]]:
        """Milliseconds of a call of every contestant in every round; each round begins with another one.

        Args:
            contestants: what is timed, under their names.
            calls: that are timed together. Many, where the host would otherwise be seen around short work of a GPU.
            lead: let each run once, unmeasured, before it is timed. Needed where a contestant works on after its turn,
                as a loader does until its queue is full: it would slow the next one, and find its own work done.
        """
        names = list(contestants)
        for _ in range(WARM_UP):
            for name in names:
                contestants[name]()
        times: dict[str, list[float]] = {name: [] for name in names}
        for number in range(self.repeats):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                if lead:
                    contestants[name]()
                times[name].append(self.milliseconds(contestants[name], calls))
        return times

    def milliseconds(self, work: Work, calls: int = 1) -> float:
        """Time of one call, to the end of what it starts on a GPU; the mean of so many made at once."""
        self.wait()
        begun = self._clock()
        for _ in range(calls):
            work()
        self.wait()
        return 1e3 * (self._clock() - begun) / calls

    @property
    def calls(self) -> int:
        """Of work that takes a GPU less than a millisecond: see `race`."""
        return CALLS if self.is_cuda else 1

    def wait(self) -> None:
        """Until the GPU has nothing left to do."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def _clock(self) -> float:
        if not self.processor:
            return time.perf_counter()
        # Loaders work in processes of their own.
        return time.process_time() + sum(map(cpu_seconds, children(os.getpid())))

    def compile(self, function: Any) -> Any:
        """`torch.compile` for fixed shapes."""
        return torch.compile(function, dynamic=False, backend="eager" if self.quick else "inductor")

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of networks."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)
