"""Journal to MLflow with the real thing: SQLite, a server that dies and comes back, killed processes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Server, until
from tracked_runs import (
    client,
    in_journal,
    in_store,
    run_folder,
    sender,
    train,
    wait_for_offset,
    warnings_of,
    without_times,
)

from trainer.errors import UserError
from trainer.tracking.journal import Journal, read_journal
from trainer.tracking.replay import Replay, Target
from trainer.tracking.sent import mlflow_run
from trainer.tracking.status import write_status
from trainer.tracking.sync import sync_run

# MLflow's own warnings are not ours to mend; those of the sender are asserted one by one.
pytestmark = [pytest.mark.timeout(90), pytest.mark.alone, pytest.mark.filterwarnings("default::ResourceWarning")]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_dir(tmp_path: Path, empty_store: Path) -> Path:
    return run_folder(tmp_path, empty_store)


def test_a_finished_run_is_all_there_with_the_journals_times(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter(1700000000.0 + tick / 8 for tick in range(1000))
    journal = Journal(run_dir / "journal.jsonl", clock=lambda: next(clock))
    journal.event("started", step=0)
    mine = sender(
        run_dir,
        params={"optim.lr": "0.05", "data.root": "x" * 9000},
        tags={"world_size": "2"},
        artifacts=[run_dir / "config.yaml", run_dir / "result.json"],
    )
    mine.start()
    train(journal, range(10))
    wait_for_offset(run_dir, journal.offset())
    time.sleep(0.5)  # several rounds without anything new
    train(journal, range(10, 25))
    journal.write({"train/loss": float("inf"), "grad/norm": float("nan")}, step=25)
    (run_dir / "result.json").write_text("{}")
    assert mine.close("FINISHED")
    assert mine.close("FAILED"), "closing again changes nothing"

    uri, run_id = mlflow_run(run_dir) or ("", "")
    assert uri == f"sqlite:///{run_dir.parent}/mlflow.db" == mine.uri
    assert run_id == mine.run_id
    run = client(uri).get_run(run_id)
    finite = Counter({row: n for row, n in in_journal(run_dir / "journal.jsonl").items() if row[1] < 25})
    assert in_store(uri, run_id) == finite
    assert (run.info.status, run.info.run_name) == ("FINISHED", "digits")
    assert run.info.start_time == 1700000000000
    last = [record["time"] for _, record in read_journal(run_dir / "journal.jsonl")][-1]
    assert run.info.end_time == round(last * 1000)
    assert run.data.params["optim.lr"] == "0.05"
    assert run.data.tags["nonfinite/train/loss"] == "inf at step 25"
    assert run.data.tags["nonfinite/grad/norm"] == "nan at step 25"
    assert run.data.tags["world_size"] == "2"
    stored = {path.name for path in (run_dir.parent / "mlartifacts").rglob("*") if path.is_file()}
    assert stored == {"config.yaml", "result.json"}
    assert warnings_of(caplog) == []


def test_a_resumed_run_goes_on_in_its_mlflow_run_without_a_point_twice(run_dir: Path) -> None:
    journal = Journal(run_dir / "journal.jsonl")
    train(journal, range(21))
    checkpoint = journal.offset()
    train(journal, range(21, 38))
    first = sender(run_dir, params={"train.epochs": "40"})
    first.start()
    assert first.close("KILLED")
    assert client(first.uri).get_run(first.run_id).info.status == "KILLED"
    journal.close()

    resumed = Journal(run_dir / "journal.jsonl")
    assert resumed.cut(checkpoint) is not None
    second = sender(run_dir, params={"train.epochs": "60", "new": "1"})
    time.sleep(0.002)
    train(resumed, range(21, 51))
    second.start()
    assert second.close("FINISHED")

    assert second.run_id == first.run_id
    rows = in_store(second.uri, second.run_id or "")
    assert without_times(rows) == without_times(in_journal(run_dir / "journal.jsonl"))
    run = client(second.uri).get_run(second.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.epochs": "40", "new": "1"}
    assert run.data.tags["changed/train.epochs"] == "60"


@pytest.mark.parametrize("arrived", [True, False])
def test_a_crash_in_the_middle_of_sending_neither_doubles_nor_loses(
    run_dir: Path, arrived: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(run_dir / "journal.jsonl")
    train(journal, range(8))
    uri = f"sqlite:///{run_dir.parent}/mlflow.db"
    path = run_dir / "journal.jsonl"
    target = Target(run_dir=run_dir, journal_path=path, uri=uri, experiment="reste", run_name="digits")
    dying = Replay(target)
    log = dying._store.log

    def die(run_id: str, points: Any) -> None:
        if arrived:
            log(run_id, points)
        raise KeyboardInterrupt

    monkeypatch.setattr(dying._store, "log", die)
    dying.open()
    with pytest.raises(KeyboardInterrupt):
        dying.send()
    dying.close()

    journal.cut(0)
    time.sleep(0.002)
    train(journal, range(12))
    again = Replay(target)
    again.open()
    again.send()
    again.close()
    rows = in_store(uri, again.run_id)
    assert without_times(rows) == without_times(in_journal(path))


def test_a_run_made_just_before_a_crash_is_found_again(run_dir: Path) -> None:
    Journal(run_dir / "journal.jsonl").write({"x": 1.0}, step=1)
    first = sender(run_dir)
    first.start()
    assert first.close()
    path = run_dir / "tracking.json"
    content = json.loads(path.read_text())
    content["stores"]["default"] |= {"run_id": None, "sent_offset": 0, "steps": {}}
    path.write_text(json.dumps(content))
    second = sender(run_dir)
    second.start()
    assert second.close()
    assert second.run_id == first.run_id
    assert without_times(in_store(second.uri, second.run_id or "")) == Counter({("x", 1, 1.0): 1})


TRAINER = """
import sys, time
from pathlib import Path
from trainer.tracking import Journal, MlflowSender
run_dir, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
journal = Journal(run_dir / "journal.jsonl")
names = {"experiment": "reste", "run_name": run_dir.name}
sender = MlflowSender(journal.path, run_dir=run_dir, uri=None, poll_s=0.01, **names)
sender.start()
for step in range(first, last):
    journal.write({"train/loss": step / 7}, step=step)
    if len(sys.argv) > 4:
        time.sleep(float(sys.argv[4]))
sys.exit(not sender.close(timeout_s=40))
"""


def start_trainer(run_dir: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAINER, str(run_dir), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_kill_9_while_sending_and_a_second_life_make_one_complete_run(run_dir: Path) -> None:
    with start_trainer(run_dir, 0, 10**6, 0.002) as child:
        try:
            wait_for_offset(run_dir, 20_000)
            with pytest.raises(UserError, match="another process is sending"):
                sync_run(run_dir)
        finally:
            child.kill()
    uri, run_id = mlflow_run(run_dir) or ("", "")
    assert client(uri).get_run(run_id).info.status == "RUNNING"
    journal = Journal(run_dir / "journal.jsonl")
    last = [record["step"] for _, record in read_journal(run_dir / "journal.jsonl")][-1]
    train(journal, range(last + 1, last + 50))
    second = sender(run_dir)
    second.start()
    assert second.close("FINISHED")
    assert mlflow_run(run_dir) == (uri, run_id)
    assert in_store(uri, run_id) == in_journal(run_dir / "journal.jsonl")
    assert client(uri).get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_two_runs_start_at_once_on_a_store_that_does_not_exist_yet(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
    with ExitStack() as stack:
        children = [stack.enter_context(start_trainer(folder, 0, 300, 0.005)) for folder in folders]
        for child in children:
            _, said = child.communicate(timeout=80)
            assert (child.returncode, said) == (0, "")
    runs = [mlflow_run(folder) or ("", "") for folder in folders]
    assert runs[0][0] == runs[1][0]
    store = client(runs[0][0])
    assert len({store.get_run(run_id).info.experiment_id for _, run_id in runs}) == 1
    for folder, (uri, run_id) in zip(folders, runs, strict=True):
        assert in_store(uri, run_id) == in_journal(folder / "journal.jsonl")


OPENER = """
import sys
import mlflow.store.tracking.sqlalchemy_store
from trainer.tracking.store import MlflowStore
print("ready", flush=True)
sys.stdin.readline()
MlflowStore(sys.argv[1], "reste").open()
"""


@pytest.mark.slow
def test_one_of_many_processes_makes_the_tables_while_the_others_wait(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENER, f"sqlite:///{tmp_path / 'mlflow.db'}"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with ExitStack() as stack:
        children = [stack.enter_context(subprocess.Popen(command, cwd=ROOT, text=True, **pipes)) for _ in range(3)]
        for child in children:
            assert child.stdout.readline() == "ready\n", child.stderr.read()
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        assert [(child.communicate(timeout=80)[1], child.returncode) for child in children] == [("", 0)] * 3


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[Server]:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_server_that_dies_and_comes_back_misses_nothing(
    run_dir: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.start()
    journal = Journal(run_dir / "journal.jsonl")
    mine = sender(run_dir, server.uri, artifacts=[run_dir / "config.yaml"])
    mine.start()
    train(journal, range(30))
    wait_for_offset(run_dir, journal.offset())
    until(lambda: '"config.yaml"' in (run_dir / "tracking.json").read_text())
    server.kill()
    began = time.perf_counter()
    train(journal, range(30, 60))
    assert time.perf_counter() - began < 0.5, "training must not notice"
    until(lambda: len(warnings_of(caplog)) > 0)
    time.sleep(1.5)
    assert len(warnings_of(caplog)) == 1, "one warning per outage"
    assert "metrics wait in the journal" in warnings_of(caplog)[0]
    server.start()
    train(journal, range(60, 90))
    assert mine.close("FINISHED")

    run_id = mine.run_id or ""
    assert in_store(server.uri, run_id) == in_journal(run_dir / "journal.jsonl")
    assert client(server.uri).get_run(run_id).info.status == "FINISHED"
    assert [item.path for item in client(server.uri).list_artifacts(run_id)] == ["config.yaml"]
    assert len(warnings_of(caplog)) == 1


def test_a_server_that_never_answers_costs_a_bounded_time_and_can_be_made_up_for(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        journal = Journal(run_dir / "journal.jsonl")
        mine = sender(run_dir, uri)
        began = time.perf_counter()
        mine.start()
        assert time.perf_counter() - began < 0.1
        train(journal, range(12))
        until(lambda: len(warnings_of(caplog)) > 0)
        began = time.perf_counter()
        assert not mine.close("FINISHED", timeout_s=1.0)
        assert time.perf_counter() - began < 4.0
        assert mine.run_id is None
        assert "reste track sync" in warnings_of(caplog)[-1]
        with pytest.raises(UserError, match="cannot be reached"):
            sync_run(run_dir, uri=uri, timeout_s=0.5)

    write_status(run_dir, "finished", step=11, total_steps=12, epoch=1, exit_code=0)
    report = sync_run(run_dir)
    assert (report.points, report.status) == (26, "FINISHED")
    assert in_store(report.uri, report.run_id) == in_journal(run_dir / "journal.jsonl")


def test_a_server_that_accepts_and_says_nothing_does_not_hold_up_the_end(run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mine = sender(run_dir, f"http://127.0.0.1:{silent.getsockname()[1]}")
        mine.start()
        Journal(run_dir / "journal.jsonl").write({"x": 1.0}, step=1)
        silent.settimeout(20)
        connection, _ = silent.accept()
        with connection:
            began = time.perf_counter()
            assert not mine.close(timeout_s=0.5)
            assert time.perf_counter() - began < 4.0, "the call itself would take 10 s"
        mine._thread.join(20)
        assert not mine._thread.is_alive(), "the thread ends by itself once its call returns"


def test_without_mlflow_training_gets_one_warning(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    Journal(run_dir / "journal.jsonl").write({"x": 1.0}, step=1)
    mine = sender(run_dir)
    mine.start()
    mine._thread.join(10)
    assert not mine.close(timeout_s=1.0)
    first, second = warnings_of(caplog)
    assert "pip install mlflow" in first
    assert "reste track sync" in second


def test_a_sender_that_was_never_started_can_be_closed(run_dir: Path) -> None:
    assert not sender(run_dir).close(timeout_s=1.0)


def test_sync_sends_what_is_missing_once_and_says_how_the_run_ended(run_dir: Path) -> None:
    journal = Journal(run_dir / "journal.jsonl", clock=lambda: 1700000000.0)
    train(journal, range(5))
    write_status(run_dir, "stopped", step=4, total_steps=12, epoch=1, exit_code=85)
    first = sync_run(run_dir)
    assert (first.points, first.status) == (11, "KILLED")
    train(journal, range(5, 8))
    second, third = sync_run(run_dir), sync_run(run_dir)
    assert (second.points, third.points) == (6, 0)
    assert first.run_id == second.run_id == third.run_id
    run = client(first.uri).get_run(first.run_id)
    assert run.data.params == {"run.name": "digits", "optim.lr": "0.05"} | {
        "tracking.uri": "null",
        "tracking.experiment": "reste",
    }
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert run.info.end_time == 1700000000000


def test_sync_leaves_a_living_run_running(run_dir: Path) -> None:
    train(Journal(run_dir / "journal.jsonl"), range(3))
    write_status(run_dir, "running", step=2, total_steps=12, epoch=1)
    report = sync_run(run_dir)
    assert report.status is None
    assert client(report.uri).get_run(report.run_id).info.status == "RUNNING"


def test_sync_to_another_store_sends_the_whole_run_there(run_dir: Path, empty_store: Path, tmp_path: Path) -> None:
    train(Journal(run_dir / "journal.jsonl"), range(5))
    here = sync_run(run_dir)
    shutil.copy(empty_store, tmp_path / "other.db")
    there = sync_run(run_dir, uri=f"sqlite:///{tmp_path}/other.db")
    assert here.points == there.points == 11
    assert in_store(there.uri, there.run_id) == in_store(here.uri, here.run_id)
    assert sync_run(run_dir).points == 0


def test_sync_of_a_deleted_mlflow_run_says_what_to_do(run_dir: Path) -> None:
    train(Journal(run_dir / "journal.jsonl"), range(3))
    report = sync_run(run_dir)
    client(report.uri).delete_run(report.run_id)
    with pytest.raises(UserError, match=r"delete tracking\.json"):
        sync_run(run_dir)
    (run_dir / "tracking.json").unlink()
    assert sync_run(run_dir).run_id != report.run_id


@pytest.mark.parametrize("missing", ["journal.jsonl", "config.yaml"])
def test_sync_of_something_else_asks_for_a_run_folder(run_dir: Path, missing: str) -> None:
    Journal(run_dir / "journal.jsonl").close()
    (run_dir / missing).unlink()
    with pytest.raises(UserError, match="name the folder of a run"):
        sync_run(run_dir)


def test_a_thousand_metrics_and_more_arrive(run_dir: Path) -> None:
    journal = Journal(run_dir / "journal.jsonl")
    for step in range(3):
        journal.write({f"layer{k}/error (%)": float(k) for k in range(400)}, step=step)
    journal.write({f"wide{k}": float(k) for k in range(1100)}, step=3)
    report = sync_run(run_dir)
    assert report.points == 3 * 400 + 1100
    assert len(client(report.uri).get_run(report.run_id).data.metrics) == 1500
