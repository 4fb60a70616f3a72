"""Starting the ranks of one machine: torchrun's own launcher, called as a library."""

from __future__ import annotations

import ctypes
import inspect
import logging
import os
import signal
import sys
import uuid

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

PARENT_VARIABLE = "RESTE_LAUNCHER_PID"
SHUTDOWN_S = 60
_PR_SET_PDEATHSIG = 1


def start_ranks(command: list[str], ranks: int) -> list[int]:
    """Run `command` once per rank on this machine, with torchrun's environment, until all have ended.

    A rank that fails takes the others down. SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are passed on to the ranks, which
    then have 60 s to save and leave.

    Args:
        command: program and arguments of a rank.
        ranks: how many to start.

    Returns:
        Exit codes of the ranks that failed (minus the signal's number if one was killed); empty if none did.
    """
    # What the launcher has to say is said better by the ranks themselves.
    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    options = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": ranks,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": 0,
        "logs_specs": DefaultLogsSpecs(),
        "signals_to_handle": "SIGTERM,SIGINT,SIGUSR1,SIGUSR2",
        "shutdown_timeout": SHUTDOWN_S,
    }
    known = inspect.signature(LaunchConfig).parameters
    config = LaunchConfig(**{name: value for name, value in options.items() if name in known})
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        return [failure.exitcode for failure in error.failures.values()]
    except SignalException as error:
        return [-int(error.sigval)]
    return []


def end_with_launcher() -> None:
    """Let this rank be killed when the launcher that started it dies, however it dies (Linux).

    Without this, `kill -9` of the launcher leaves ranks training on, with the run's folder locked.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)
