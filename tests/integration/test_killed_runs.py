"""MLflow runs whose process was killed: the next start beside them ends them, and never one that lives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow_server import until
from tracked_runs import client, in_journal, in_store, run_folder, sender, train, wait_for_offset
from trainings import ROOT, environment

from trainer.processes import process_state
from trainer.tracking.journal import Journal
from trainer.tracking.recorder import Recorder
from trainer.tracking.sent import mlflow_run
from trainer.tracking.status import write_status
from trainer.tracking.sync import manifest_tags, sync_run

pytestmark = [pytest.mark.timeout(180), pytest.mark.filterwarnings("default::ResourceWarning")]

START = """
import logging, sys, time
from pathlib import Path
from trainer.tracking import Journal, MlflowSender, write_status
logging.basicConfig(level=logging.INFO, format="%(message)s")
run_dir, first, last, ending = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
facts = {"step": last, "total_steps": 100, "epoch": 1}
journal = Journal(run_dir / "journal.jsonl")
write_status(run_dir, "running", **facts)
sender = MlflowSender(
    journal.path, run_dir=run_dir, uri=None, experiment="reste", run_name=run_dir.name, poll_s=0.05
)
sender.start()
for step in range(first, last):
    journal.write({"train/loss": step / 7}, step=step)
if ending == "wait":
    time.sleep(600)
if ending == "word":
    write_status(run_dir, "failed", exit_code=4, error="not finite", **facts)
    time.sleep(600)
while not sender._replay._looked_beside:
    time.sleep(0.05)
write_status(run_dir, "finished", exit_code=0, **facts)
sys.exit(not sender.close("FINISHED", timeout_s=60))
"""


def start(run_dir: Path, first: int, last: int, ending: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, str(run_dir), str(first), str(last), ending]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> str:
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    return said


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def in_mlflow(run_dir: Path) -> str:
    uri, run_id = mlflow_run(run_dir) or ("", "")
    return str(client(uri).get_run(run_id).info.status)


def wait_until_sent(run_dir: Path, lines: int) -> None:
    journal = run_dir / "journal.jsonl"
    until(lambda: journal.exists() and len(journal.read_bytes().splitlines()) >= lines, 120)
    wait_for_offset(run_dir, journal.stat().st_size, seconds=120)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_starts_at_once_end_what_was_killed_and_leave_what_lives(tmp_path: Path, empty_store: Path) -> None:
    killed, failed, alive, two, three = (
        run_folder(tmp_path, empty_store, name) for name in ("killed", "failed", "alive", "two", "three")
    )
    children = [start(killed, 0, 5, "wait"), start(failed, 0, 5, "word"), start(alive, 0, 5, "wait")]
    try:
        for folder in (killed, failed, alive):
            wait_until_sent(folder, 5)
        until(lambda: '"failed"' in (failed / "status.json").read_text())
        for victim in children[:2]:
            kill(victim)
        assert [in_mlflow(folder) for folder in (killed, failed, alive)] == ["RUNNING"] * 3
        # Two starts at the same moment look at the same runs, and at each other.
        children += [start(two, 0, 5, "finish"), start(three, 0, 5, "finish")]
        said = [finish(child) for child in children[3:]]
        assert [in_mlflow(folder) for folder in (killed, failed, alive)] == ["KILLED", "FAILED", "RUNNING"]
        assert [in_mlflow(folder) for folder in (two, three)] == ["FINISHED"] * 2
        assert sum(text.count(f"{killed} had no process any more") for text in said) == 1, "by one of them, once"
        # The run that was ended may go on, and is then a running one again.
        before = mlflow_run(killed)
        children.append(start(killed, 5, 9, "finish"))
        finish(children[-1])
        assert mlflow_run(killed) == before
        assert in_mlflow(killed) == "FINISHED"
        assert in_store(*(before or ("", ""))) == in_journal(killed / "journal.jsonl")
    finally:
        for child in children:
            if child.poll() is None:
                kill(child)


def left_behind(run_dir: Path, state: str, *, pid: int) -> None:
    """A run folder as a process leaves it that was killed after its fifth step."""
    train(Journal(run_dir / "journal.jsonl", clock=lambda: 1700000000.5), range(5))
    dying = sender(run_dir)
    dying._replay.open()
    dying._replay.send()
    dying._replay.close()
    write_status(run_dir, state, step=4, total_steps=12, epoch=1)  # type: ignore[arg-type]
    status = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps(status | {"pid": pid, "born": process_state(pid)[1]}))


def test_the_next_start_ends_what_was_killed_and_leaves_what_lives(tmp_path: Path, empty_store: Path) -> None:
    names = ("killed", "failed", "alive", "deleted", "damaged", "next")
    killed, failed, alive, deleted, damaged, following = (run_folder(tmp_path, empty_store, name) for name in names)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    for folder, state in ((killed, "running"), (failed, "failed"), (deleted, "running"), (damaged, "running")):
        left_behind(folder, state, pid=gone.pid)
    left_behind(alive, "running", pid=os.getpid())
    uri, run_id = mlflow_run(deleted) or ("", "")
    client(uri).delete_run(run_id)
    damaged_run = mlflow_run(damaged) or ("", "")
    (damaged / "tracking.json").write_text("{")

    mine = sender(following)
    mine.start()
    until(lambda: mine._replay._looked_beside)
    assert mine.close("FINISHED")
    assert [in_mlflow(folder) for folder in (killed, failed, alive)] == ["KILLED", "FAILED", "RUNNING"]
    assert client(damaged_run[0]).get_run(damaged_run[1]).info.status == "RUNNING", "nobody knows which run it is"
    uri, run_id = mlflow_run(killed) or ("", "")
    assert client(uri).get_run(run_id).info.end_time == 1700000000500, "the time of the journal's last line"

    again = sender(killed)
    again.start()
    until(lambda: again._replay._looked_beside)
    assert in_mlflow(killed) == "RUNNING", "it goes on"
    assert again.close("FINISHED")


def test_sync_completes_and_ends_a_killed_run(tmp_path: Path, empty_store: Path) -> None:
    run_dir = run_folder(tmp_path, empty_store)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    left_behind(run_dir, "running", pid=gone.pid)
    train(Journal(run_dir / "journal.jsonl"), range(5, 8))
    report = sync_run(run_dir)
    assert (report.points, report.status) == (6, "KILLED")
    assert in_mlflow(run_dir) == "KILLED"
    assert in_store(report.uri, report.run_id) == in_journal(run_dir / "journal.jsonl")


def test_starts_are_counted_and_tell_how_the_one_before_ended(tmp_path: Path) -> None:
    about = {"config_digest": "c", "data_digest": "d", "world_size": 1}
    for step, state in ((0, None), (7, "running"), (9, "stopped")):
        if state is not None:
            write_status(tmp_path, state, step=step, total_steps=12, epoch=1)  # type: ignore[arg-type]
        recorder = Recorder(tmp_path, enabled=True, total_steps=12, steps_per_epoch=6, print_s=60.0)
        recorder.begin("seed: 1\n", about, seed=1, step=0, journal_offset=0, resumed_from=None)
        recorder.abandon()
    tags = manifest_tags(json.loads((tmp_path / "manifest.json").read_text()))
    assert tags["attempts"] == "3"
    assert tags["attempts/ended"] == "1 killed at step 7; 2 stopped at step 9"


def test_a_run_of_another_machine_lives_as_long_as_its_lock_is_renewed(tmp_path: Path, empty_store: Path) -> None:
    from trainer.tracking.orphans import LOCK_NAME, is_gone
    from trainer.tracking.status import Status

    run_dir = run_folder(tmp_path, empty_store)
    there = Status(state="running", step=1, total_steps=2, epoch=1, hostname="elsewhere", time=0.0)
    assert is_gone(run_dir, there)
    (run_dir / LOCK_NAME).touch()
    assert not is_gone(run_dir, there), "a long evaluation, say: no news in status.json, but the sender is there"
    os.utime(run_dir / LOCK_NAME, (0, 0))
    assert is_gone(run_dir, there)
