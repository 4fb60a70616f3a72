"""Recording a few steps of a run: a trace for each rank, and one account of them all."""

from __future__ import annotations

import gzip
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.distributed import collectives
from trainer.profiling.account import Account, account
from trainer.profiling.sections import mark_sections
from trainer.profiling.table import account_lines
from trainer.run import Run
from trainer.tracking.files import write_json

log = logging.getLogger(__name__)
FOLDER = "profile"


def record_steps(run: Run, span: str) -> Callable[[], None]:
    """Have `train` record some steps of this start; returns what gives the profiler back, recorded or not.

    Args:
        run: assembled, not yet training.
        span: `STEP+N`: after STEP steps of this start, N are recorded.
    """
    after, count = map(int, span.split("+"))
    left = run.plan.end_step - run.state.step
    if left < after + count:
        fix = f"set log.profile={left - 1}+1 or lower" if left > 1 else "it is at its end"
        run.recorder.note(f"nothing is profiled: log.profile={span}, and this start has {left} steps to do ({fix})")
        return lambda: None
    return StepRecorder(run, after, count).close


class StepRecorder:
    """Follows the steps of a run, and records those it was asked for.

    Args:
        run: assembled, not yet training.
        after: steps of this start that are let go by, at least 1.
        count: steps that are recorded.
    """

    def __init__(self, run: Run, after: int, count: int) -> None:
        self._run = run
        self._first, self._count = run.state.step + after + 1, count
        self._trace = run.directory / FOLDER / f"rank_{run.environment.rank}.json.gz"
        self._account: Account | None = None
        if run.device.type == "cpu":
            # Else it reports its start, its end and the lack of a GPU as errors. With a GPU there may be true ones.
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (run.device.type == "cuda")
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=after - 1, warmup=1, active=count, repeat=1),
            on_trace_ready=self._take,
        )
        self._beat = run.pulse.step_done
        self._unmark: Callable[[], None] | None = mark_sections(run, self._step_done)
        self._profiler.start()

    def _step_done(self, step: int) -> None:
        self._beat(step)
        if self._run.device.type == "cuda" and step >= self._first - 1:
            # Steps begin and end for the device where they do for the host.
            torch.cuda.synchronize()
        if step < self._first + self._count - 1:
            self._profiler.step()
            return
        self._run.pulse.beat("writing the profile")
        with self._run.feed.paused():
            self._profiler.step()
            self.close()
            self._report(collectives.gather_objects(self._account))

    def _take(self, profiler: profile) -> None:
        try:
            self._trace.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(self._trace))
            with gzip.open(self._trace, "rt", encoding="utf-8") as file:
                self._account = account(json.load(file))
        except OSError as error:  # training is worth more than its profile
            log.warning("the profile of this rank cannot be written: %s", error)

    def _report(self, accounts: list[Account | None]) -> None:
        known = [found for found in accounts if found is not None]
        if not collectives.is_main() or not known:
            return
        steps = self._first, self._first + self._count - 1
        for line in account_lines(known, steps):
            self._run.recorder.note(line)
        table = self._trace.with_name("table.json")
        ranks = [None if found is None else asdict(found) for found in accounts]
        try:
            write_json(table, {"steps": steps, "ranks": ranks})
        except OSError as error:
            log.warning("%s cannot be written: %s", table, error)
            return
        self._run.recorder.note(f"  in {table}, traces beside it: open them at ui.perfetto.dev")

    def close(self) -> None:
        """Give everything back; a recording that is not complete is dropped."""
        if self._unmark is not None:
            self._unmark()
            self._unmark = None
            self._profiler.on_trace_ready = None
            self._profiler.stop()
