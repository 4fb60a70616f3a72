"""Trainings as jobs of a real SLURM: they end where a training on one machine ends, whatever comes between."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from slurm_daemons import Cluster, free_ports
from slurm_user import SETTINGS, User, digest, train_on_one_machine
from trainings import QUICK

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_two_nodes_train_to_the_weights_of_one_machine_and_a_requeue_ends_at_once(user: User, whole: str) -> None:
    job = user.submit("both")
    user.cluster.wait(job, "COMPLETED")
    assert digest(user.run("both")) == whole
    told = user.output("both", job)
    assert f"2 ranks on cpu (RANK and WORLD_SIZE of torchrun inside SLURM job {job})" in told
    assert (user.run("both") / "slurm" / f"{job}.sh").read_text().startswith("#!/bin/bash\n# reste slurm render")
    user.nobody_is_left()

    user.cluster.run("scontrol", "requeue", job)
    again = user.cluster.wait_for_restart(job, 1)
    assert again["ExitCode"] == "0:0"
    new = user.output("both", job).removeprefix(told)
    assert "finished in an earlier start" in new
    assert "ranks on cpu" not in new


def test_usr1_saves_and_requeues_and_the_result_is_bit_identical(user: User, whole: str) -> None:
    job = user.submit("signalled")
    user.wait_for_step("signalled", 3)
    user.cluster.run("scancel", "--signal=USR1", job)
    user.cluster.wait(job, "PENDING")
    user.nobody_is_left()
    ended = user.cluster.wait_for_restart(job, 1)
    assert ended["JobState"] == "COMPLETED"
    assert digest(user.run("signalled")) == whole
    told = user.output("signalled", job)
    assert told.count("ranks on cpu") == 2, "a start's output is lost"
    assert "starts from new weights" in told
    assert "goes on from" in told
    assert "stopped on request; requeued, to go on from step_" in told
    assert "Traceback" not in told, "torchrun takes a stop for a failure"
    user.nobody_is_left()


def test_the_time_limit_saves_and_requeues_and_the_result_is_bit_identical(user: User, whole: str) -> None:
    # SLURM looks every 30 s and may be a minute early: the signal comes after 30 to 60 s, and finds training not begun.
    job = user.submit("limited", "--time=2", "--signal-before=60", "--setup=sleep $((55 - 55 * SLURM_RESTART_COUNT))")
    user.cluster.wait(job, "PENDING", after="RUNNING")
    user.nobody_is_left()
    user.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    assert user.cluster.wait_for_restart(job, 1)["JobState"] == "COMPLETED"
    assert digest(user.run("limited")) == whole
    assert user.output("limited", job).count("ranks on cpu") == 2
    user.nobody_is_left()


def test_scancel_saves_and_ends_for_good(user: User) -> None:
    job = user.submit("cancelled")
    user.wait_for_step("cancelled", 1)
    user.cluster.run("scancel", job)
    assert user.cluster.wait(job, "CANCELLED")["Restarts"] == "0"
    user.nobody_is_left()
    assert list((user.run("cancelled") / "checkpoints").glob("step_*")), user.output("cancelled", job)


def test_a_lost_node_ends_the_job_with_a_reason_and_the_run_goes_on_elsewhere(
    tmp_path: Path, digits: Path, whole: str
) -> None:
    (tmp_path / "home").mkdir()
    with Cluster(tmp_path / "slurm", node_timeout=10) as cluster:
        user = User(cluster, tmp_path / "home", digits)
        job = user.submit("lost", "--requeues=0")
        user.wait_for_checkpoint("lost")
        cluster.kill_node("two")
        cluster.wait(job, "FAILED", "NODE_FAIL")
        user.nobody_is_left()
        told = user.output("lost", job)
    assert "two" in told.partition("ranks on cpu")[2], told
    train_on_one_machine(user.folder, digits, SETTINGS, "lost")
    assert digest(user.run("lost")) == whole


def test_failures_in_a_row_and_the_budget_end_the_requeues(user: User) -> None:
    # Without the project's programs each start fails at once.
    broken = "--setup=PATH=/usr/bin:/bin"
    jobs = {
        "stuck": user.submit("stuck", broken, "--failures=2"),
        "spent": user.submit("spent", broken, "--failures=9", "--requeues=1"),
    }
    for run, job in jobs.items():
        ended = user.cluster.wait_for_restart(job, 1)
        assert ended["JobState"] == "FAILED"
        assert ended["ExitCode"] == "1:0"
        assert "torchrun: command not found" in user.output(run, job)
    assert "failed 2 times in a row without a new checkpoint; last: the beginning" in user.output(
        "stuck", jobs["stuck"]
    )
    assert "requeued 1 times, now over" in user.output("spent", jobs["spent"])
    user.nobody_is_left()


def test_bad_data_ends_with_its_exit_code_and_is_not_requeued(user: User) -> None:
    job = user.submit("nowhere", data=Path("missing"))
    ended = user.cluster.wait(job, "FAILED")
    assert ended["ExitCode"] == "3:0"
    assert ended["Restarts"] == "0"
    assert "data root missing does not exist" in user.output("nowhere", job)
    user.nobody_is_left()


def test_srun_without_torchrun_trains_to_the_same_weights(user: User, whole: str) -> None:
    words = " ".join([str(QUICK), *SETTINGS, f"data.root={user.digits}", "run.name=bare"])
    script = user.folder / "bare.sh"
    script.write_text(
        f"#!/bin/bash\nexport MASTER_ADDR=127.0.0.1 MASTER_PORT={free_ports(1)[0]}\n"
        f"srun --wait=60 python -m trainer {words}\n"
    )
    user.sbatch("--nodes=2", "--ntasks=2", "--wait", f"--output={user.folder}/bare.log", str(script))
    assert digest(user.run("bare")) == whole
    assert "SLURM_PROCID and its like of srun" in (user.folder / "bare.log").read_text()
    user.nobody_is_left()


def test_each_task_of_an_array_is_a_run_of_its_own(user: User) -> None:
    job = user.submit("task-%a", "--array=3-4", "--setup=PATH=/usr/bin:/bin", "--requeues=0")
    user.cluster.wait_for_empty_queue()
    for task in (3, 4):
        assert "torchrun: command not found" in (user.run("slurm") / f"{job}_{task}.log").read_text()
        [history] = (user.run(f"task-{task}") / "slurm").glob("*.history")
        assert "requeued 0 times, now over" in history.read_text()


def test_a_job_that_slurm_refuses_is_one_line_and_leaves_nothing(user: User) -> None:
    done = user.reste("slurm", "submit", QUICK, "--partition=absent")
    assert done.returncode == 2
    assert done.stderr.startswith("error: sbatch refuses the job: ")
    assert "absent" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in user.folder.iterdir()] == ["site.yaml"]


def test_an_array_trains_the_runs_of_a_study_side_by_side_and_its_report_compares_them(user: User) -> None:
    study = [*SETTINGS, "train.max_steps=4", f"data.root={user.digits}", "run.name=both", "tracking.enabled=true"]
    study += ["--case", "plain:", "--case", "steep: estimator.o_end=5"]
    done = user.reste("slurm", "submit", QUICK, *study, "--nodes=1")
    assert done.stdout.startswith("job "), done.stderr
    assert "compare  reste study runs" in done.stdout
    user.cluster.wait_for_empty_queue()
    user.nobody_is_left()
    folder = user.run("both-study")
    told = "".join(log.read_text() for log in sorted((folder / "slurm").glob("*.log")))
    assert {path.parent.name for path in folder.glob("*/result.json")} == {"plain-seed1234", "steep-seed1234"}, told
    compared = user.reste("study", "runs", QUICK, *study, "--report")
    assert compared.returncode == 0, compared.stderr
    with (folder / "cases.csv").open(newline="") as file:
        assert [(row["case"], row["n"]) for row in csv.DictReader(file)] == [("plain", "1"), ("steep", "1")]
    runs = {run["name"]: run for run in mlflow_runs(user.folder / "runs" / "mlflow.db")}
    assert set(runs) == {"both-study", "plain-seed1234", "steep-seed1234"}
    assert runs["plain-seed1234"]["parent"] == runs["steep-seed1234"]["parent"] == runs["both-study"]["id"]
    again = user.reste("slurm", "submit", QUICK, *study, "--nodes=1")
    assert again.returncode == 2
    assert "are finished" in again.stderr


def mlflow_runs(database: Path) -> list[dict[str, str]]:
    """Name, id and parent of every run, without MLflow."""
    query = (
        "select name, run_uuid, (select value from tags where tags.run_uuid = runs.run_uuid "
        "and key = 'mlflow.parentRunId') from runs"
    )
    with closing(sqlite3.connect(database)) as connection:
        return [dict(zip(("name", "id", "parent"), row, strict=True)) for row in connection.execute(query)]
