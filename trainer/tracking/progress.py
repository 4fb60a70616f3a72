"""Where training stands, for people: a bar on a terminal, otherwise one plain line every few seconds."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    import rich.progress

_WINDOW = 60


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What one line shows; None is left out. `top1` in percent, `data_wait`, `evaluated` in [0, 1], `eta_s` seconds."""

    step: int
    total_steps: int
    epoch: int
    epochs: int
    loss: float | None = None
    top1: float | None = None
    images_per_s: float | None = None
    data_wait: float | None = None
    evaluated: float | None = None
    eta_s: float | None = None


def format_duration(seconds: float) -> str:
    """Two units at most: `48 s`, `1 min 12 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def format_line(moment: Moment) -> str:
    """One line: `step 120/1800  epoch 3/40  loss 0.512  top-1 83.2 %  1234 images/s  ETA 1 min 12 s`."""
    parts = [f"step {moment.step}/{moment.total_steps}", f"epoch {moment.epoch}/{moment.epochs}"]
    if moment.loss is not None:
        parts.append(f"loss {moment.loss:.3f}")
    if moment.top1 is not None:
        parts.append(f"top-1 {moment.top1:.1f} %")
    if moment.images_per_s is not None:
        parts.append(f"{moment.images_per_s:.0f} images/s")
    if moment.data_wait is not None:
        parts.append(f"data wait {100 * moment.data_wait:.0f} %")
    if moment.evaluated is not None:
        parts.append(f"evaluating {100 * moment.evaluated:.0f} %")
    if moment.eta_s is not None:
        parts.append(f"ETA {format_duration(moment.eta_s)}")
    return "  ".join(parts)


class Progress:
    """Shows progress on rank 0 and is silent elsewhere, so that the loop need not ask.

    Call `update` after every step; metrics are given where they were read anyway (log steps) and stay until
    the next ones.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        epochs: int,
        eval_every: int = 0,
        enabled: bool = True,
        interval_s: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up; nothing is shown before the first `update`.

        Args:
            total_steps: Steps of the whole run.
            epochs: Epochs of the whole run.
            eval_every: Steps between evaluations; the last step is followed by one in any case. 0: never before.
            enabled: False on every rank but 0.
            interval_s: Seconds between two plain lines.
            stream: Where to write; `sys.stdout` if None.
            clock: Seconds that never go back.
        """
        self._total_steps = total_steps
        self._epochs = epochs
        self._eval_every = eval_every
        self._evaluation_s = 0.0
        self._enabled = enabled
        self._interval_s = interval_s
        self._stream = stream or sys.stdout
        self._clock = clock
        self._moment: Moment | None = None
        self._shown: Moment | None = None
        self._printed_at = -float("inf")
        self._pace: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._bar: rich.progress.Progress | None = None

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the pace of the last minute or so, and as long for each evaluation as the last one took.

        None before there is a pace.
        """
        if len(self._pace) < 2:
            return None
        (began, first), (now, last) = self._pace[0], self._pace[-1]
        if last == first:
            return None
        steps_s = (self._total_steps - last) * (now - began) / (last - first)
        return steps_s + self._evaluations_after(last) * self._evaluation_s

    def _evaluations_after(self, step: int) -> int:
        if not self._eval_every:
            return int(step < self._total_steps)
        return -(-self._total_steps // self._eval_every) - step // self._eval_every

    def evaluating(self, share: float) -> None:
        """Show how much of an evaluation is done, in [0, 1]."""
        if self._moment is not None:
            self._moment = replace(self._moment, evaluated=share)
            if self._enabled:
                self._show(self._clock())

    def evaluated(self, seconds: float) -> None:
        """An evaluation is over that took so long; it is not counted against the pace of steps."""
        self._evaluation_s = seconds
        self._pace = deque(((at + seconds, step) for at, step in self._pace), maxlen=_WINDOW)
        if self._moment is not None:
            self._moment = replace(self._moment, evaluated=None, eta_s=self.eta_s)

    def update(
        self,
        step: int,
        *,
        epoch: int,
        loss: float | None = None,
        top1: float | None = None,
        images_per_s: float | None = None,
        data_wait: float | None = None,
    ) -> None:
        """Record that `step` steps are done, in `epoch` (counted from 1), and show it when it is time."""
        now = self._clock()
        if not self._pace or now - self._pace[-1][0] >= 1.0 or step == self._total_steps:
            self._pace.append((now, step))
        last = self._moment
        self._moment = Moment(
            step=step,
            total_steps=self._total_steps,
            epoch=epoch,
            epochs=self._epochs,
            loss=loss if loss is not None or last is None else last.loss,
            top1=top1 if top1 is not None or last is None else last.top1,
            images_per_s=images_per_s if images_per_s is not None or last is None else last.images_per_s,
            data_wait=data_wait if data_wait is not None or last is None else last.data_wait,
            eta_s=self.eta_s,
        )
        if self._enabled:
            self._show(now)

    def note(self, text: str) -> None:
        """Print a line of its own, above the bar if there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def finish(self) -> None:
        """Show the last state and take the bar down; harmless when done twice."""
        if self._bar is not None:
            self._draw(self._bar)
            self._bar.stop()
            self._bar = None
        elif self._enabled and self._moment is not None and self._moment != self._shown:
            self._print(self._clock())

    def __enter__(self) -> Self:
        """Use as a context, so that an error does not leave the terminal with half a bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish, whatever happened."""
        self.finish()

    def _show(self, now: float) -> None:
        if self._stream.isatty():
            self._bar = self._bar or self._start_bar()
            self._draw(self._bar)
        elif now - self._printed_at >= self._interval_s:
            self._print(now)

    def _print(self, now: float) -> None:
        assert self._moment is not None
        self._printed_at = now
        self._shown = self._moment
        print(format_line(self._moment), file=self._stream, flush=True)

    def _start_bar(self) -> rich.progress.Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress as Bar, TextColumn

        text = TextColumn("{task.description}", markup=False)
        bar = Bar(BarColumn(bar_width=20), text, console=Console(file=self._stream), transient=False)
        bar.add_task("", total=self._total_steps)
        bar.start()
        return bar

    def _draw(self, bar: rich.progress.Progress) -> None:
        assert self._moment is not None
        self._shown = self._moment
        bar.update(bar.task_ids[0], completed=self._moment.step, description=format_line(self._moment))
