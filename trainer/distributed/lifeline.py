"""Processes that die with the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

LAUNCHER_VARIABLE = "RESTE_LAUNCHER_PID"
"""Environment variable that a launcher sets to its process id for what it starts."""

_TORCHRUN_VARIABLE = "TORCHELASTIC_RUN_ID"
_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """Let this process end when the launcher that started it dies, however it dies (Linux).

    Without this, `kill -9` of the launcher leaves ranks training on, with the run's folder locked. A launcher of ours
    passes on every signal that it can answer, so its death is a kill, and the ranks are killed too. torchrun dies of
    SIGUSR1 and the like without a word to its ranks: they are asked to save and stop. Does nothing in a process that no
    launcher has started.
    """
    parent = os.environ.get(LAUNCHER_VARIABLE)
    if sys.platform != "linux":
        return
    if parent is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            os.kill(os.getpid(), signal.SIGKILL)
    elif _TORCHRUN_VARIABLE in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
