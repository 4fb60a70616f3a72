"""How the failure of a rank is told: to status.json, to the launcher, on standard error."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from trainer.distributed.environment import announced_world, is_rank
from trainer.errors import EXIT_BUG, ConfigError, UserError
from trainer.signals import StoppedEarly
from trainer.tracking.status import Status, read_status, write_status

LOST = "lost its peers"
LET_OTHERS_SPEAK_S = 2.0


def environment_rank() -> int:
    """This process's rank as its launcher's variables have it, before they have been checked."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def name() -> str:
    """`rank 3 on node17`."""
    return f"rank {environment_rank()} on {socket.gethostname()}"


def is_alone() -> bool:
    """Whether no launcher has started this process as one of several ranks."""
    try:
        return not is_rank(os.environ) or announced_world(os.environ) == 1
    except ConfigError:  # some launcher's, and damaged: the error says so
        return False


def first_line(error: BaseException) -> str:
    """The kind of an error that is no user error, and the first line of what it says."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank has gone; that rank's own error is the one to read."""
    text = str(error)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "remote process exit",
        "ncclRemoteError",
        "communicator was aborted",
        "collective operation timeout",
        "timed out",
    )
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def note_exit_code(code: int, *, unless_told: bool = False) -> bool:
    """Leave an exit code in the file that RESTE_EXIT_FILE names, for launchers that forget it, as torchrun does.

    Args:
        code: of this rank.
        unless_told: let the code stand that another rank has left there.

    Returns:
        Whether there is such a file.
    """
    note = os.environ.get("RESTE_EXIT_FILE")
    if not note:
        return False
    if not (unless_told and Path(note).exists()):
        Path(note).write_text(f"{code}\n", encoding="utf-8")
    return True


def note_end(directory: Path, error: BaseException) -> None:
    """Record in status.json how an error ended the run, by the rank whose error it is."""
    if isinstance(error, StoppedEarly):
        note_failure(directory, error.exit_code, error.line, stopped=True)
    elif isinstance(error, Exception) and is_lost_peer(error):
        deadline = time.monotonic() + LET_OTHERS_SPEAK_S
        while (status := read_status(directory)) is not None and status.state == "running":
            if time.monotonic() > deadline:
                note_failure(directory, EXIT_BUG, f"{name()} {LOST}: {first_line(error)}")
                return
            time.sleep(0.1)
    elif isinstance(error, Exception) and (environment_rank() == 0 or not getattr(error, "everywhere", False)):
        note_failure(directory, getattr(error, "exit_code", EXIT_BUG), first_line(error))


def note_failure(directory: Path, exit_code: int, message: str, *, stopped: bool = False) -> None:
    """Record in status.json how the run ended; the first report stands, unless it only tells of a loss."""
    status = read_status(directory)
    if status is None or not (status.state == "running" or is_hearsay(status)):
        return
    write_status(
        directory,
        "stopped" if stopped else "failed",
        step=status.step,
        total_steps=status.total_steps,
        epoch=status.epoch,
        metrics=status.metrics,
        checkpoint=status.checkpoint,
        trouble=status.trouble,
        exit_code=exit_code,
        error=message,
        stage=status.stage,
    )


def is_hearsay(status: Status) -> bool:
    """Whether a rank wrote this that knows no more than that others have gone."""
    return status.state == "failed" and LOST in (status.error or "")
