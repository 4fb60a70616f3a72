"""`reste study equilibrium` with real trainings: what it leaves, how it is interrupted, what MLflow shows."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from trainings import QUICK, descendants, environment, last_step, records, reste

from trainer.processes import process_state

pytestmark = pytest.mark.timeout(700)
TINY = (
    "data.loader=synthetic",
    "data.synthetic={samples: 64, classes: 10}",
    "train.batch_size=16",
    "optim.warmup=0ep",
    "eval.every=0",
    "log.every=1",
    "log.print_s=0.5",
)


def study(runs: Path, o_end: str, *overrides: str) -> list[str]:
    return ["study", "equilibrium", str(QUICK), "--o-end", o_end, *TINY, f"run.dir={runs}", *overrides]


def table(runs: Path) -> list[dict[str, str]]:
    with (runs / "digits-equilibrium" / "equilibrium.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_trains_its_runs_once_and_writes_table_and_figure(tmp_path: Path) -> None:
    command = study(tmp_path, "2", "train.epochs=1", "tracking.enabled=false")
    done = reste(*command, threads=1)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "digits-equilibrium"
    assert (folder / "equilibrium.png").read_bytes().startswith(b"\x89PNG")
    [row] = table(tmp_path)
    probes = [r["metrics"] for r in records(folder / "o2-seed1234" / "journal.jsonl") if r["type"] == "metrics"]
    errors = [m["indicator/estimating_error"] for m in probes if "indicator/estimating_error" in m]
    assert len(errors) == int(row["probes"]) == 4
    assert float(row["estimating_error"]) == pytest.approx(sum(errors) / 4)
    assert not (tmp_path / "mlflow.db").exists()
    journal = (folder / "o2-seed1234" / "journal.jsonl").read_bytes()
    again = reste(*command, threads=1)
    assert again.returncode == 0, again.stderr
    assert "1 run, 0 to train" in again.stdout
    assert (folder / "o2-seed1234" / "journal.jsonl").read_bytes() == journal


def test_a_study_inside_a_launchers_rank_is_refused(tmp_path: Path) -> None:
    rank = environment() | {"RANK": "0", "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "launch", *study(tmp_path, "2")]
    done = subprocess.run(command, env=rank, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "without torchrun" in done.stderr
    assert not list(tmp_path.iterdir())


@contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", *command],
            env=environment() | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            if process.poll() is None:
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_for(journal: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while last_step(journal) < step:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupted_study_goes_on_where_it_was_and_mlflow_shows_it_below_one_parent(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    command = study(tmp_path, "1,3", "train.epochs=10")
    folder = tmp_path / "digits-equilibrium"
    with started(command, tmp_path / "log") as process:
        wait_for(folder / "o3-seed1234" / "journal.jsonl", 6, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(200) == 85, (tmp_path / "log").read_text()
    assert "start the same command again" in (tmp_path / "log").read_text()
    assert json.loads((folder / "o3-seed1234" / "status.json").read_text())["state"] == "stopped"
    first = (folder / "o1-seed1234" / "journal.jsonl").read_bytes()
    done = reste(*command, threads=1)
    assert done.returncode == 0, done.stderr
    assert "2 runs, 1 to train" in done.stdout
    assert (folder / "o1-seed1234" / "journal.jsonl").read_bytes() == first
    events = [r["event"] for r in records(folder / "o3-seed1234" / "journal.jsonl") if r["type"] == "event"]
    assert "resumed" in events
    assert [row["o_end"] for row in table(tmp_path)] == ["1", "3"]

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'reste'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"digits-equilibrium", "o1-seed1234", "o3-seed1234"}
    parent = runs.pop("digits-equilibrium")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    assert parent.data.params["study.o_end"] == "1,3"
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert names == {"equilibrium.png", "equilibrium.csv"}


@pytest.mark.slow
def test_a_killed_study_takes_its_training_along(tmp_path: Path) -> None:
    command = study(tmp_path, "1", "train.epochs=200", "tracking.enabled=false")
    with started(command, tmp_path / "log") as process:
        wait_for(tmp_path / "digits-equilibrium" / "o1-seed1234" / "journal.jsonl", 2, process)
        training = descendants(process.pid)
        assert training
        process.kill()
        deadline = time.monotonic() + 20
        while any(process_state(pid)[0] != "Z" for pid in training):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.slow
def test_a_training_that_fails_ends_the_study_with_its_one_line_and_its_exit_code(tmp_path: Path) -> None:
    done = reste(*study(tmp_path, "1,2", "train.epochs=2", "optim.lr=1e37", "tracking.enabled=false"), threads=1)
    assert done.returncode == 4, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "run o1-seed1234: " in errors[0]
    assert "not finite at step" in errors[0]
    assert not (tmp_path / "digits-equilibrium" / "o2-seed1234").exists()


def test_a_study_without_its_data_leaves_nothing_behind(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    done = reste("study", "equilibrium", QUICK, "--o-end", "2", f"run.dir={runs}", f"data.root={tmp_path / 'none'}")
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
