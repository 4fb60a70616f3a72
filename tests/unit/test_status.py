"""status.json: read back as written, never half-written, and honest about dead processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.status import print_status
from trainer.errors import DataError
from trainer.failures import note_failure
from trainer.tracking.recorder import Recorder
from trainer.tracking.status import Status, read_status, write_status

pytestmark = pytest.mark.timeout(30)


def test_a_status_is_read_back_as_written(tmp_path: Path) -> None:
    write_status(
        tmp_path,
        "stopped",
        step=12,
        total_steps=40,
        epoch=2,
        eta_s=3.5,
        metrics={"val/top1": 97.5, "train/loss": float("inf")},
        checkpoint="checkpoints/step_00000012",
        exit_code=85,
        error="stopped on request",
    )
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.step, status.total_steps, status.epoch) == ("stopped", 12, 40, 2)
    assert (status.eta_s, status.exit_code, status.error) == (3.5, 85, "stopped on request")
    assert status.checkpoint == "checkpoints/step_00000012"
    assert status.metrics["val/top1"] == 97.5
    assert math.isinf(status.metrics["train/loss"])
    assert abs(status.time - time.time()) < 10


def test_a_run_that_has_not_written_has_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    assert read_status(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "content", ["", "[]", '{"state": "running"}', '{"state": "odd", "step": 1, "total_steps": 1, "epoch": 1}']
)
def test_something_else_in_its_place_is_an_error_with_a_fix(tmp_path: Path, content: str) -> None:
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(DataError, match="delete it"):
        read_status(tmp_path)


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    write_status(tmp_path, "running", step=1, total_steps=2, epoch=1)
    path = tmp_path / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mood": "good"}))
    assert read_status(tmp_path) is not None


def test_readers_never_see_a_half_written_status(tmp_path: Path) -> None:
    write_status(tmp_path, "running", step=0, total_steps=9, epoch=1)
    done = threading.Event()

    def write() -> None:
        for step in range(300):
            metrics = {f"m{k}": k / 3 for k in range(step % 50)}
            write_status(tmp_path, "running", step=step, total_steps=9, epoch=1, metrics=metrics)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert read_status(tmp_path) is not None
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_status(tmp_path / "gone", "running", step=1, total_steps=2, epoch=1)
    assert "cannot be written" in caplog.text


def test_alive_means_the_process_is_there(tmp_path: Path) -> None:
    write_status(tmp_path, "running", step=1, total_steps=2, epoch=1)
    mine = read_status(tmp_path)
    assert mine is not None
    assert mine.pid == os.getpid()
    assert mine.alive()
    assert not replace(mine, state="finished").alive()
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert not replace(mine, pid=child.pid).alive()


def test_a_process_that_has_ended_unnoticed_is_not_alive(tmp_path: Path) -> None:
    write_status(tmp_path, "running", step=1, total_steps=2, epoch=1)
    mine = read_status(tmp_path)
    assert mine is not None
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert replace(mine, pid=child.pid, born="").alive()
        assert not replace(mine, pid=child.pid).alive(), "another process has the number now"
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        os.kill(child.pid, 0)  # its number is still taken
        assert not replace(mine, pid=child.pid).alive()


def test_on_another_host_a_long_silence_means_dead() -> None:
    there = Status(state="running", step=1, total_steps=2, epoch=1, hostname="elsewhere", time=time.time())
    assert there.alive()
    assert not replace(there, time=time.time() - 3 * 3600).alive()


def test_what_a_failed_rank_has_told_is_not_overwritten_by_rank_0(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, enabled=True, total_steps=4, steps_per_epoch=2, print_s=0.0)
    about = {"config_digest": "c", "data_digest": "d", "world_size": 2}
    recorder.begin("{}", about, seed=1, step=0, journal_offset=0, resumed_from=None)
    recorder.saved(tmp_path / "step_00000001")
    told = read_status(tmp_path)
    assert told is not None
    assert (told.state, told.checkpoint) == ("running", "checkpoints/step_00000001")
    note_failure(tmp_path, 3, "x.jpg of rank 1 cannot be read")
    recorder.saved(tmp_path / "step_00000002")
    recorder.abandon()
    told = read_status(tmp_path)
    assert told is not None
    assert (told.state, told.exit_code, told.error) == ("failed", 3, "x.jpg of rank 1 cannot be read")


def test_a_folder_of_runs_is_a_line_for_each_the_newest_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, state, top1 in (("b", "finished", 61.5), ("a", "running", 12.25)):
        (tmp_path / name).mkdir()
        write_status(tmp_path / name, state, step=3, total_steps=9, epoch=1, eta_s=70.0, metrics={"val/top1": top1})
    (tmp_path / "no_run").mkdir()
    print_status(tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0][:3] == ["run", "state", "step"]
    assert lines[-2][:4] == ["b", "finished", "3/9", "61.50"]
    assert lines[-1][:8] == ["a", "running", "3/9", "12.25", "1", "min", "10", "s"]
    with pytest.raises(DataError, match="or a folder of runs"):
        print_status(tmp_path / "no_run")
