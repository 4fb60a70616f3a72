"""Signals that ask a process to stop, and what it does about them; imports nothing heavy, so that it can come first."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.errors import EXIT_STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
SAME_S = 1.0
"""A second Ctrl-C this soon is the same one, passed on by a launcher of the same terminal."""

STARTED_AT = "RESTE_STARTED_AT"
"""Environment variable: unix time at which a script began to listen for requests on behalf of the ranks."""


class StoppedEarly(BaseException):
    """Asked to stop while there is nothing to save. No `Exception`: a library that retries must not swallow it."""

    exit_code = EXIT_STOPPED

    @property
    def line(self) -> str:
        """What to tell the user."""
        return f"stopped on request ({self}) before there was anything new to save: start again to go on"


@contextmanager
def handling(answer: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `answer` handle every signal that asks to stop; afterwards whatever handled them before does.

    SIGHUP is left ignored where it is: that is how `nohup` works.
    """
    taken = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, answer) for number in taken}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Again:
    """Tells a second Ctrl-C from the first one heard twice."""

    def __init__(self) -> None:
        self._first: float | None = None

    def is_second(self, number: int) -> bool:
        """Whether this signal is a Ctrl-C that follows another request; call it for every signal."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return number == signal.SIGINT and now - self._first > SAME_S


@contextmanager
def _untold(kind: type[BaseException]) -> Iterator[None]:
    """Keep Python from printing such exceptions where it cannot raise them: in finalisers and callbacks."""
    usual = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not issubclass(unraisable.exc_type, kind):
            usual(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = usual


class Requests:
    """Signals that reach a rank, from its first moment to its last.

    Attributes:
        started: when this process began, in seconds of `time.monotonic`.
        began_at: unix time since which requests are meant for this start: a script's that listens for its ranks, or
            when this process began.
        reason: name of the first signal, None before there was one.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.began_at = float(os.environ.get(STARTED_AT) or time.time())
        self.reason: str | None = None
        self._again = Again()
        self._at_once = False

    @contextmanager
    def received(self) -> Iterator[None]:
        """Note signals instead of dying of them.

        Raises:
            KeyboardInterrupt: at the second Ctrl-C, wherever the program is.
        """
        with handling(self._on_signal):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around work that has nothing to save, such as starting up.

        Raises:
            StoppedEarly: as soon as a signal comes.
        """
        asked_before = self.reason is not None
        self._at_once = True
        try:
            with _untold(StoppedEarly):
                yield
        finally:
            self._at_once = False
        # Raised within a finaliser or a callback of the garbage collector, it has gone no further than that.
        if self.reason is not None and not asked_before:
            raise StoppedEarly(self.reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only the flag: a collective or a save in a handler can deadlock.
        if self._again.is_second(number):
            raise KeyboardInterrupt
        if self.reason is None:
            self.reason = signal.Signals(number).name
        if self._at_once:
            self._at_once = False
            raise StoppedEarly(self.reason)
