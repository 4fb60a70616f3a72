"""Faults of the schedule in real runs, where a test of their own is worth it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import QUICK, SMALL, environment


@pytest.mark.slow
def test_ranks_that_leave_without_a_word_are_no_success(tmp_path: Path, digits: Path) -> None:
    places = [f"data.root={digits}", f"run.dir={tmp_path}", "run.name=x", "data.loader=torchvision", "--nproc=2"]
    done = subprocess.run(
        [sys.executable, "-m", "launch", "train", str(QUICK), *SMALL, *places, "train.max_steps=6"],
        env=environment() | {"RESTE_FAULTS": "exit0@*:3"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: every rank ended with code 0")
    assert json.loads((tmp_path / "x" / "status.json").read_text())["exit_code"] == 1
