"""status.json: where a run stands and how it ended. Launchers take the exit code from here."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from trainer.errors import DataError
from trainer.processes import process_state
from trainer.secrets import redact
from trainer.tracking.files import write_json
from trainer.tracking.staging import is_stage

logger = logging.getLogger(__name__)

State = Literal["running", "finished", "stopped", "failed"]

SILENT_FOR_S = 1800.0
"""After so long without a sign a process of another machine is taken to have gone."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """One moment of a run.

    `stage` is the one at work where a training has several; steps, epoch and time to go are that stage's. `eta_s` is
    in seconds, `time` in unix seconds, `metrics` are the last ones logged, `checkpoint` is a path in the run folder,
    `trouble` says why a newer one is not saved, `exit_code` is that of `reste train` and None while it runs, `error`
    is one line.
    """

    state: State
    step: int
    total_steps: int
    epoch: int
    eta_s: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    trouble: str | None = None
    exit_code: int | None = None
    error: str | None = None
    stage: str | None = None
    time: float = 0.0
    hostname: str = ""
    pid: int = 0
    born: str = ""
    """When the process began, so that another one of the same number is told from it."""

    def alive(self) -> bool:
        """Whether the process that wrote this still runs: exact on its own host, a guess by age elsewhere."""
        if self.state != "running":
            return False
        if self.hostname != socket.gethostname():
            return time.time() - self.time < SILENT_FOR_S
        if Path("/proc/self").exists():
            state, born = process_state(self.pid)
            return state != "Z" and self.born in ("", born)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def write_status(
    run_dir: Path,
    state: State,
    *,
    step: int,
    total_steps: int,
    epoch: int,
    eta_s: float | None = None,
    metrics: Mapping[str, float] | None = None,
    checkpoint: str | None = None,
    trouble: str | None = None,
    exit_code: int | None = None,
    error: str | None = None,
    stage: str | None = None,
) -> None:
    """Replace `run_dir/status.json`; a full disk is a warning, since it must not end training.

    What a stage says of itself is said of the whole training too, in the folder above; that is finished when its last
    stage is and whoever trains the stages says so.
    """
    status = Status(
        state=state,
        step=step,
        total_steps=total_steps,
        epoch=epoch,
        eta_s=eta_s,
        metrics={key: float(value) for key, value in (metrics or {}).items()},
        checkpoint=checkpoint,
        trouble=trouble,
        exit_code=exit_code,
        error=None if error is None else redact(error),
        stage=stage,
        time=time.time(),
        hostname=socket.gethostname(),
        pid=os.getpid(),
        born=process_state(os.getpid())[1],
    )
    _write(run_dir, status)
    if is_stage(run_dir):
        below = None if checkpoint is None else f"{run_dir.name}/{checkpoint}"
        goes_on: dict[str, Any] = {"state": "running", "exit_code": None} if state == "finished" else {}
        _write(run_dir.parent, replace(status, stage=run_dir.name, checkpoint=below, **goes_on))


def _write(run_dir: Path, status: Status) -> None:
    try:
        write_json(run_dir / "status.json", asdict(status), durable=False)
    except OSError as failure:
        logger.warning("%s cannot be written: %s", run_dir / "status.json", failure)


def read_status(run_dir: Path) -> Status | None:
    """Read `run_dir/status.json`; None if the run has not written one yet.

    Raises:
        DataError: The file is there and is not a status.
    """
    path = run_dir / "status.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {name: content[name] for name in (item.name for item in fields(Status)) if name in content}
        known["metrics"] = {key: float(value) for key, value in known.get("metrics", {}).items()}
        status = Status(**known)
        if status.state not in get_args(State):
            raise ValueError(status.state)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError):
        raise DataError(f"{path} is not a run's status: delete it, the next start writes a new one") from None
    return status
