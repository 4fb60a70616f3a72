"""One exit code for all ranks, from how they ended and from what status.json says."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from launch.local import tell
from trainer.config import load_config
from trainer.distributed.elastic import Ended
from trainer.failures import LOST
from trainer.tracking.status import State, read_status, write_status

KILLED = Ended(codes={0: -signal.SIGTERM, 1: 1}, first=0)


def status(folder: Path, state: State, exit_code: int | None, error: str) -> None:
    write_status(folder, state, step=3, total_steps=9, epoch=1, exit_code=exit_code, error=error)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "x").mkdir()
    return tmp_path / "x"


@pytest.mark.parametrize(
    ("ended", "state", "exit_code", "error", "expected"),
    [
        # It had told of a damaged file, and was killed while it closed what it had open.
        (KILLED, "failed", 3, "a.jpg cannot be used", 3),
        (KILLED, "failed", 1, f"rank 1 {LOST}", 1),
        (Ended(codes={1: -signal.SIGKILL}, first=1), "running", None, "", 1),
        (Ended(codes={1: 1}, first=1), "failed", 4, "the loss is not finite", 4),
        (Ended(codes={1: 2}, first=1), "running", None, "", 2),
        (Ended(codes={}), "finished", 0, "", 0),
        (Ended(codes={}), "running", None, "", 1),
    ],
)
def test_the_exit_code_is_that_of_the_cause(
    run: Path, ended: Ended, state: State, exit_code: int | None, error: str, expected: int
) -> None:
    began = time.time()
    status(run, state, exit_code, error)
    config = load_config(None, [f"run.dir={run.parent}", "run.name=x"])
    assert tell(ended, config, began) == expected


def test_what_an_earlier_start_said_is_not_believed(run: Path) -> None:
    status(run, "failed", 3, "a.jpg cannot be used")
    config = load_config(None, [f"run.dir={run.parent}", "run.name=x"])
    assert tell(KILLED, config, time.time() + 1) == 1


def test_a_killed_rank_is_told_of_in_the_status(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.time()
    status(run, "running", None, "")
    config = load_config(None, [f"run.dir={run.parent}", "run.name=x"])
    assert tell(Ended(codes={1: -signal.SIGKILL}, first=1), config, began) == 1
    assert capsys.readouterr().err.startswith("error: rank 1 was killed by SIGKILL")
    found = read_status(run)
    assert found is not None
    assert (found.state, found.exit_code) == ("failed", 1)
