"""A rank that does not go on is named with its stack, the job ends in time, and the run can be resumed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from trainings import QUICK, SMALL, Life, records, reste

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow, pytest.mark.alone]
TIMEOUT_S = 6


def arguments(runs: Path, digits: Path, *extra: str) -> list[str]:
    where = [f"data.root={digits}", f"run.dir={runs}", "run.name=x", "--nproc=2"]
    return [str(QUICK), *SMALL, "data.loader=torchvision", "eval.every=0", "checkpoint.every=2", *where, *extra]


def test_a_stopped_rank_is_named_with_its_stack_and_the_run_resumes(tmp_path: Path, digits: Path) -> None:
    run, log = tmp_path / "x", tmp_path / "log"
    command = arguments(tmp_path, digits, f"run.step_timeout_s={TIMEOUT_S}")
    with Life(*command, log=log) as life:
        life.wait_for(run / "checkpoints" / "step_00000004" / "manifest.json")
        victim = life.ranks()[1]
        os.kill(victim, signal.SIGSTOP)
        began = time.monotonic()
        assert life.process.wait(120) == 5, log.read_text()
        # Time-out, the wait for the silent rank's answer, the launcher's end.
        assert time.monotonic() - began < TIMEOUT_S + 40
        assert not life.survivors()
    last = log.read_text().splitlines()[-1]
    assert last.startswith("error: no progress for ")
    assert f"rank 1 (process {victim} on " in last
    assert "is stopped by a signal" in last
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)
    assert "rank 1" in status["error"]
    for rank in (0, 1):
        stacks = (run / "logs" / f"rank_{rank}.log").read_text()
        assert "trainer/loop.py" in stacks, "the stack of a rank that was training"
    waiting = json.loads((run / "logs" / "collectives_rank_0.json").read_text())["gloo"]["entries"][-1]
    assert waiting["profiling_name"].startswith("gloo:all_")
    assert not waiting["retired"], "the collective that the others wait in"
    again = reste("train", *command, "train.max_steps=8")
    assert again.returncode == 0, again.stderr
    [resumed] = [r for r in records(run / "journal.jsonl") if r.get("event") == "resumed"]
    assert resumed["step"] >= 4
    assert not list((run / "logs").glob("hang-*"))


def test_a_whole_job_that_was_suspended_goes_on(tmp_path: Path, digits: Path) -> None:
    run = tmp_path / "x"
    with Life(*arguments(tmp_path, digits, "run.step_timeout_s=4", "train.max_steps=30"), log=tmp_path / "log") as life:
        life.wait_for_step(run / "journal.jsonl", 4)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in life.ranks():
                os.kill(pid, number)
            time.sleep(9 if number == signal.SIGSTOP else 0)
        assert life.process.wait(200) == 0, (tmp_path / "log").read_text()


def test_a_slow_rank_is_named(tmp_path: Path, digits: Path) -> None:
    """Stopped three quarters of the time, in pulses much shorter than a time-out."""
    run, log = tmp_path / "x", tmp_path / "log"
    with Life(*arguments(tmp_path, digits, "log.every=4"), log=log) as life:
        life.wait_for_step(run / "journal.jsonl", 4)
        victim, deadline = life.ranks()[1], time.monotonic() + 300
        while "holds the others up" not in log.read_text() and time.monotonic() < deadline:
            assert life.process.poll() is None, log.read_text()
            for number, seconds in ((signal.SIGSTOP, 0.12), (signal.SIGCONT, 0.04)):
                os.kill(victim, number)
                time.sleep(seconds)
    [warning] = [line for line in log.read_text().splitlines() if "holds the others up" in line]
    assert warning.startswith("WARNING: rank 1 on ")
    assert "the forward pass" in warning
    slowest = [
        r["metrics"]["perf/slowest_rank"]
        for r in records(run / "journal.jsonl")
        if "perf/slowest_rank" in r.get("metrics", {})
    ]
    assert slowest[-3:] == [1, 1, 1]
