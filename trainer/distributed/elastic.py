"""Starting the ranks of one machine: torchrun's own launcher, called as a library."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import tempfile
import uuid
from dataclasses import dataclass
from types import FrameType

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from trainer.distributed.lifeline import LAUNCHER_VARIABLE
from trainer.processes import children
from trainer.signals import Again, StoppedEarly, handling

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


@dataclass(frozen=True)
class Ended:
    """How the ranks of this machine ended.

    Attributes:
        codes: exit codes of the ranks that failed, minus the signal's number if one was killed; by rank.
        requested: name of the signal that this process passed on to them, or None.
        at_once: whether a second Ctrl-C killed them.
        first: the rank to blame, None if none failed.
        traceback: of its bug, or None.
    """

    codes: dict[int, int]
    requested: str | None = None
    at_once: bool = False
    first: int | None = None
    traceback: str | None = None


def start_ranks(command: list[str], ranks: int) -> Ended:
    """Run `command` once per rank on this machine, with torchrun's environment, until all have ended.

    A rank that fails takes the others down, 30 s after they were asked to go if need be. Signals that ask to stop are
    passed on to the ranks, which take the time they need; a second Ctrl-C kills them.

    Args:
        command: program and arguments of a rank.
        ranks: how many to start.

    Raises:
        StoppedEarly: asked to stop before there was a rank.
    """
    # What the launcher has to say is said better by the ranks themselves.
    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    forward = _Forward()
    failures: dict[int, ProcessFailure] = {}
    with tempfile.TemporaryDirectory(prefix="reste-ranks-") as errors, handling(forward):
        try:
            elastic_launch(_config(ranks, errors), command[0])(*command[1:])
        except ChildFailedError as error:
            failures = error.failures
        except SignalException as error:
            return Ended({0: -int(error.sigval)}, first=0)
    first = _first(failures)
    return Ended(
        codes={rank: failure.exitcode for rank, failure in failures.items()},
        requested=forward.requested,
        at_once=forward.at_once,
        traceback=None if first is None else _traceback(failures[first]),
        first=first,
    )


def _config(ranks: int, errors: str) -> LaunchConfig:
    options = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": ranks,
        "run_id": uuid.uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": 0,
        "logs_specs": DefaultLogsSpecs(log_dir=errors),
        # The launcher's answer to a signal is to end within a time limit; ours leaves the ranks the time to save.
        "signals_to_handle": "SIGQUIT",
    }
    known = inspect.signature(LaunchConfig).parameters
    return LaunchConfig(**{name: value for name, value in options.items() if name in known})


class _Forward:
    """Passes signals on to the ranks."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self.at_once = False
        self._again = Again()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.at_once = self._again.is_second(number)
        self.requested = self.requested or signal.Signals(number).name
        started = children(os.getpid())
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if self.at_once else number)
        if not started:
            raise StoppedEarly(self.requested)


def _first(failures: dict[int, ProcessFailure]) -> int | None:
    """The rank to blame.

    Times are in whole seconds, and a rank that loses its peers ends within the same one. So causes come before
    times: a bug that was recorded, an exit code that tells, a signal, but SIGTERM (which the launcher sends) last.
    """

    def order(rank: int) -> tuple[bool, bool, bool, bool, int]:
        failure = failures[rank]
        code = failure.exitcode
        return _traceback(failure) is None, code <= 1, code >= 0, code == -signal.SIGTERM, failure.timestamp

    return min(failures, key=order, default=None)


def _traceback(failure: ProcessFailure) -> str | None:
    message = failure.error_file_data.get("message")
    return message["extraInfo"]["py_callstack"] if isinstance(message, dict) else None


def record_error(error: Exception) -> bool:
    """Write a rank's error, while it is being handled, where torchrun's launcher looks for it; False without one."""
    if not os.environ.get(_ERROR_FILE):
        return False
    get_error_handler().record_exception(error)
    return True
