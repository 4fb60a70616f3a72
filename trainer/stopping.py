"""Stopping is an agreement: signals, a stop file or a deadline set a flag; the ranks agree on it between two steps."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trainer.cadence import due
from trainer.distributed import collectives

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
STOP_FILE = "STOP"


class Stopper:
    """Collects requests to stop.

    Args:
        run_dir: a file named STOP in it is a request, removed when it is seen.
        time_limit_min: minutes from now after which to stop, or None.
        every: steps between agreements.
    """

    def __init__(self, run_dir: Path, *, time_limit_min: float | None, every: int) -> None:
        self._file = run_dir / STOP_FILE
        self._deadline = None if time_limit_min is None else time.monotonic() + 60 * time_limit_min
        self._every = every
        self.reason: str | None = None

    def agreed(self, step: int) -> bool:
        """Whether any rank was asked to stop; a collective, called by all ranks after every step."""
        if not due(step, self._every):
            return False
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = self.reason or "time limit"
        if collectives.is_main() and self._file.exists():
            self.reason = self.reason or f"file {self._file}"
            self._file.unlink(missing_ok=True)
        return collectives.agree_any(self.reason is not None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only the flag: a collective or a save in a handler can deadlock.
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer signals while the loop runs; the second Ctrl-C ends the program at once."""
        previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
