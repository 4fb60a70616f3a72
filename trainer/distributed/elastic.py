"""Starting the ranks of one machine: torchrun's own launcher, called as a library."""

from __future__ import annotations

import inspect
import logging
import os
import uuid

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trainer.distributed.lifeline import LAUNCHER_VARIABLE

SHUTDOWN_S = 60


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
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
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
