"""Other `reste` processes, one after the other, that are asked to stop when this one is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trainer.distributed.lifeline import LAUNCHER_VARIABLE
from trainer.signals import handling

LOOK_EVERY_S = 0.2


class Children:
    """Runs commands of `reste` and passes the signals of this process on to them.

    Attributes:
        stopped: whether a signal has come; no further command should be run then.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, arguments: list[str], log: Path, look: Callable[[], None]) -> int:
        """Run `reste ARGUMENTS` to its end; its exit code, minus the signal's number if one has killed it.

        Args:
            arguments: behind `reste`.
            log: file that its output goes to, replaced.
            look: called again and again while it runs.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "launch", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {LAUNCHER_VARIABLE: str(os.getpid())},
                start_new_session=True,  # a terminal's Ctrl-C reaches it through this process alone, once
            )
            while (code := self._process.poll()) is None:
                look()
                time.sleep(LOOK_EVERY_S)
        return code

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer signals while commands run: one saves and stops, a second Ctrl-C ends at once."""
        with handling(self._on_signal):
            yield

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
