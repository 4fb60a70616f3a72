"""Whole runs on a disk that is really full: training goes on, and what was saved stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trainings import QUICK, SMALL, Life, last_step, metrics, reste

from launch.status import print_status
from trainer import checkpoint, checkpoints

pytestmark = pytest.mark.timeout(900)
STEPS = 60
EVERY = 5
CHECKPOINT = 2_250_000
"""About how many bytes one takes."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path, leave: float) -> Path:
    """Take all of a disk but room for so many checkpoints."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - round(leave * CHECKPOINT)))
    return filler


def arguments(disk: Path, digits: Path, steps: int) -> list[str]:
    short = [
        "train.batch_size=8",
        f"train.max_steps={steps}",
        f"checkpoint.every={EVERY}",
        "eval.every=0",
        "data.loader=torchvision",
    ]
    return [str(QUICK), *SMALL, *short, f"data.root={digits}", f"run.dir={disk}", "run.name=x", "log.print_s=0.1"]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text()) if (run / "status.json").exists() else {}


def test_a_run_on_a_full_disk_goes_on_and_saves_again_once_there_is_room(
    tmp_path: Path, disk: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, log = disk / "x", tmp_path / "log"
    filler = fill(disk, leave=1.5)
    with Life(*arguments(disk, digits, STEPS), log=log) as life:
        while not status(run).get("trouble"):
            assert life.process.poll() is None, log.read_text()
            time.sleep(0.01)
        print_status(run)
        kept = checkpoints.steps(run / "checkpoints")
        assert [checkpoint.step_of(path) for path in kept] == [EVERY]
        filler.unlink()
        assert life.process.wait(240) == 0, log.read_text()
    shown = capsys.readouterr().out
    assert f"checkpoint  {kept[0]}" in shown
    [step] = re.findall(r"NOT SAVED   step (\d+) is not saved \(", shown)
    assert int(step) in range(2 * EVERY, STEPS, EVERY), "training goes on meanwhile"
    assert "No space left on device): it takes 2.1 MiB" in shown
    for tried in (2 * EVERY, step):
        assert f"WARNING: step {tried} is not saved" in log.read_text()
    assert status(run)["trouble"] is None
    there = checkpoints.steps(run / "checkpoints")
    assert [checkpoint.step_of(path) for path in there] == [STEPS - EVERY, STEPS]
    assert all(map(checkpoint.is_valid, there))
    assert checkpoints.stumps(run / "checkpoints") == []
    logged = [step for step, values in metrics(run / "journal.jsonl") if "train/loss" in values]
    assert logged == list(range(1, STEPS + 1)), "every step is in the journal once"


@pytest.mark.slow
def test_a_run_that_cannot_save_its_end_says_so_and_goes_on_from_what_it_has(disk: Path, digits: Path) -> None:
    run = disk / "x"
    filler = fill(disk, leave=1.5)
    ended = reste("train", *arguments(disk, digits, 2 * EVERY))
    assert ended.returncode == 2, "0 would say that all is saved"
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "step 10, the best so far, is not saved" in line
    assert "free some space, and start again to go on from step_00000005" in line
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 2)
    assert not (run / "result.json").exists()
    filler.unlink()
    again = reste("train", *arguments(disk, digits, 2 * EVERY))
    assert again.returncode == 0, again.stderr
    assert "goes on from" in again.stdout
    assert last_step(run / "journal.jsonl") == 2 * EVERY
    assert checkpoint.is_valid(run / "checkpoints" / "step_00000010")
