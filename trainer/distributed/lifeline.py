"""Processes that die with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

LAUNCHER_VARIABLE = "RESTE_LAUNCHER_PID"
"""Environment variable that a launcher sets to its process id for what it starts."""

_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """Let this process be killed when the launcher that started it dies, however it dies (Linux).

    Without this, `kill -9` of the launcher leaves ranks training on, with the run's folder locked. Does nothing in a
    process that no launcher has started.
    """
    parent = os.environ.get(LAUNCHER_VARIABLE)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)
