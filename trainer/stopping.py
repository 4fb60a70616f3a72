"""Stopping is an agreement: signals, a stop file or a deadline are requests; the ranks agree on them between steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from trainer.cadence import due
from trainer.distributed import collectives
from trainer.pulse import Pulse
from trainer.signals import Requests
from trainer.tracking.staging import is_stage

T = TypeVar("T")
log = logging.getLogger(__name__)
STOP_FILE = "STOP"


class EvaluationCut(Exception):  # noqa: N818
    """The ranks have agreed to stop in the middle of an evaluation."""


class Stopper:
    """Collects requests to stop.

    Args:
        run_dir: a file named STOP in it is a request, removed when it is seen; for a stage also one in the folder of
            the whole training. One that was there before this start is removed with a warning.
        requests: signals to this process.
        time_limit_min: minutes after the start of this process after which to stop, or None.
        pulse: told of every batch of an evaluation.
        every: steps between agreements.
    """

    def __init__(
        self, run_dir: Path, requests: Requests, pulse: Pulse, *, time_limit_min: float | None, every: int
    ) -> None:
        self._pulse = pulse
        # A stage also heeds the file of the whole training.
        folders = [run_dir, run_dir.parent] if is_stage(run_dir) else [run_dir]
        self._files = [folder / STOP_FILE for folder in folders]
        self._requests = requests
        self._deadline = None if time_limit_min is None else requests.started + 60 * time_limit_min
        self._every = every
        self._other: str | None = None
        self._agreed = False
        if collectives.is_main():
            self._remove_old_files()

    @property
    def reason(self) -> str | None:
        """What this rank was asked by, None if it was not asked."""
        return self._requests.reason or self._other

    def agreed(self, step: int) -> bool:
        """Whether any rank was asked to stop; a collective, called by all ranks after every step."""
        if not self._agreed and due(step, self._every):
            self._agreed = self._ask()
        return self._agreed

    def until_asked(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of an evaluation, equally many on every rank; a collective before each.

        Raises:
            EvaluationCut: on every rank, once any was asked to stop.
        """
        for batch in batches:
            self._agreed = self._ask()
            if self._agreed:
                raise EvaluationCut
            self._pulse.beat("evaluating")
            yield batch

    def _ask(self) -> bool:
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._other = self._other or "time limit"
        for file in self._files if collectives.is_main() else ():
            if file.exists():
                self._other = self._other or f"file {file}"
                file.unlink(missing_ok=True)
        return collectives.agree_any(self.reason is not None)

    def _remove_old_files(self) -> None:
        for file in self._files:
            try:
                old = file.stat().st_mtime < self._requests.began_at
            except FileNotFoundError:
                continue
            if old:
                file.unlink(missing_ok=True)
                log.warning("%s is older than this start: removed; make it again to stop", file)
