"""What a run does while MLflow is away, slow, full or locked: it trains on, and everything arrives in the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import Proxy, Server, until
from tracked_runs import client, in_journal, in_store, run_folder, sender, train, wait_for_offset, warnings_of

from trainer.errors import UserError
from trainer.tracking.journal import Journal
from trainer.tracking.sent import mlflow_run
from trainer.tracking.status import write_status
from trainer.tracking.sync import sync_run

pytestmark = [pytest.mark.timeout(180), pytest.mark.alone, pytest.mark.filterwarnings("default::ResourceWarning")]


@pytest.fixture
def run_dir(tmp_path: Path, empty_store: Path) -> Path:
    return run_folder(tmp_path, empty_store)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def locked() -> Iterator[Proxy]:
    """A door that no password opens, with nothing behind it."""
    proxy = Proxy()
    proxy.login = "nobody:never"
    yield proxy
    proxy.close()


def train_for(journal: Journal, steps: range) -> float:
    """Journal these steps; the longest time that one of them took."""
    longest = 0.0
    for step in steps:
        began = time.perf_counter()
        train(journal, range(step, step + 1))
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.002)
    return longest


@pytest.mark.slow
def test_a_server_that_is_down_at_the_start_gets_everything_once_it_is_up(
    run_dir: Path, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.down = True
    journal = Journal(run_dir / "journal.jsonl")
    mine = sender(run_dir, proxy.uri, artifacts=[run_dir / "config.yaml"])
    mine.start()
    train(journal, range(40))
    until(lambda: proxy.calls >= 3)
    assert mine.run_id is None
    proxy.down = False
    train(journal, range(40, 60))
    wait_for_offset(run_dir, journal.offset())
    assert mine.close("FINISHED")
    run_id = str(mine.run_id)
    assert in_store(proxy.uri, run_id) == in_journal(run_dir / "journal.jsonl")
    assert client(proxy.uri).get_run(run_id).info.status == "FINISHED"
    assert len(warnings_of(caplog)) == 1
    assert "metrics wait in the journal" in warnings_of(caplog)[0]


@pytest.mark.slow
def test_an_outage_in_the_middle_loses_doubles_and_reorders_nothing(run_dir: Path, proxy: Proxy) -> None:
    journal = Journal(run_dir / "journal.jsonl")
    mine = sender(run_dir, proxy.uri)
    mine.start()
    for begin in range(0, 120, 30):
        train_for(journal, range(begin, begin + 30))
        proxy.down = not proxy.down
        calls = proxy.calls
        until(lambda before=calls: proxy.calls > before)
    proxy.down = False
    assert mine.close("FINISHED")
    run_id = str(mine.run_id)
    assert in_store(proxy.uri, run_id) == in_journal(run_dir / "journal.jsonl")
    history = [metric.step for metric in client(proxy.uri).get_metric_history(run_id, "train/loss")]
    assert history == list(range(120))


@pytest.mark.slow
def test_a_server_of_two_seconds_a_call_holds_nobody_up_and_gets_everything(run_dir: Path, proxy: Proxy) -> None:
    proxy.delay_s = 2.0
    journal = Journal(run_dir / "journal.jsonl")
    mine = sender(run_dir, proxy.uri)
    mine.start()
    longest = train_for(journal, range(200))
    assert longest < 1.0, "a step waited for the server"
    assert mine.close("FINISHED", timeout_s=120)
    proxy.delay_s = 0.0
    assert in_store(proxy.uri, str(mine.run_id)) == in_journal(run_dir / "journal.jsonl")


@pytest.mark.slow
def test_a_slow_server_that_was_not_waited_for_is_made_up_for_by_sync(run_dir: Path, proxy: Proxy) -> None:
    proxy.delay_s = 2.0
    journal = Journal(run_dir / "journal.jsonl")
    mine = sender(run_dir, proxy.uri)
    mine.start()
    train(journal, range(50))
    until(lambda: proxy.calls >= 3)
    assert not mine.close("FINISHED", timeout_s=1.0)
    write_status(run_dir, "finished", step=49, total_steps=50, epoch=1, exit_code=0)
    mine._thread.join(60)
    proxy.delay_s = 0.0
    report = sync_run(run_dir, uri=proxy.uri)
    assert report.status == "FINISHED"
    assert in_store(proxy.uri, report.run_id) == in_journal(run_dir / "journal.jsonl")
    experiment = client(proxy.uri).get_run(report.run_id).info.experiment_id
    key = client(proxy.uri).get_run(report.run_id).data.tags["reste.key"]
    assert len(client(proxy.uri).search_runs([experiment], f"tags.`reste.key` = '{key}'")) == 1, "one run, not two"


def test_calls_fail_for_as_long_as_a_schedule_of_faults_says(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    away = [True]
    journal = Journal(run_dir / "journal.jsonl")
    mine = sender(run_dir, down=lambda: away[0])
    mine.start()
    train(journal, range(20))
    until(lambda: warnings_of(caplog))
    assert mine.run_id is None
    assert "RESTE_FAULTS" in warnings_of(caplog)[0]
    away[0] = False
    assert mine.close("FINISHED")
    assert in_store(mine.uri, str(mine.run_id)) == in_journal(run_dir / "journal.jsonl")


def test_wrong_credentials_are_one_warning_that_names_the_variables(
    run_dir: Path, locked: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(run_dir / "journal.jsonl")
    mine = sender(run_dir, locked.uri.replace("://", "://ann:hunter2@"))
    mine.start()
    train(journal, range(20))
    until(lambda: locked.calls >= 3)
    assert not mine.close("FINISHED", timeout_s=0.5)
    assert len(warnings_of(caplog)) == 2
    assert "MLFLOW_TRACKING_USERNAME" in warnings_of(caplog)[0]
    assert "401" in warnings_of(caplog)[0]
    assert "reste track sync" in warnings_of(caplog)[1]
    mine._thread.join(20)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME") as caught:
        sync_run(run_dir, uri=locked.uri, timeout_s=0.5)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in caplog.text
    report = sync_run(run_dir)
    assert in_store(report.uri, report.run_id) == in_journal(run_dir / "journal.jsonl")


@pytest.mark.slow
def test_the_right_credentials_open_the_door_from_the_address_or_the_environment(
    run_dir: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    proxy.login = "ann:hunter2"
    journal = Journal(run_dir / "journal.jsonl")
    train(journal, range(20))
    first = sender(run_dir, proxy.uri.replace("://", "://ann:hunter2@"))
    first.start()
    assert first.close("KILLED")
    assert capfd.readouterr() == ("", ""), "MLflow would show the address, password and all"
    train(journal, range(20, 30))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    report = sync_run(run_dir, uri=proxy.uri)
    assert report.run_id == first.run_id, "the same store, whoever asks"
    assert in_store(proxy.uri, report.run_id) == in_journal(run_dir / "journal.jsonl")


@pytest.mark.slow
def test_mlflows_own_authentication_lets_the_right_password_in_and_no_other(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server", login=("ann", "hunter2hunter2"))
    server.start()
    try:
        journal = Journal(run_dir / "journal.jsonl")
        train(journal, range(20))
        wrong = sender(run_dir, server.uri.replace("://", "://ann:hunter3hunter3@"))
        wrong.start()
        until(lambda: warnings_of(caplog))
        assert not wrong.close("FINISHED", timeout_s=0.5)
        assert "MLFLOW_TRACKING_USERNAME" in warnings_of(caplog)[0]
        assert "hunter3" not in caplog.text
        wrong._thread.join(20)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2hunter2")
        report = sync_run(run_dir, uri=server.uri)
        assert in_store(server.uri, report.run_id) == in_journal(run_dir / "journal.jsonl")
    finally:
        server.kill()


def test_a_full_disk_under_the_store_loses_nothing(
    run_dir: Path, tmp_path: Path, empty_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = empty_store.stat().st_size + 2**17
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        shutil.copy(empty_store, disk / "mlflow.db")
        journal = Journal(run_dir / "journal.jsonl")
        mine = sender(run_dir, f"sqlite:///{disk}/mlflow.db")
        mine.start()
        train(journal, range(10))
        wait_for_offset(run_dir, journal.offset())
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(512)):
                    pass
            except OSError:
                pass
        train(journal, range(10, 400))
        until(lambda: warnings_of(caplog))
        assert "metrics wait in the journal" in warnings_of(caplog)[0]
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert mine.close("FINISHED")
        assert in_store(mine.uri, str(mine.run_id)) == in_journal(run_dir / "journal.jsonl")
        assert len(warnings_of(caplog)) == 1
    finally:
        _leave(mine.uri)
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert mlflow_run(run_dir) == (mine.uri, mine.run_id)


def _leave(uri: str) -> None:
    """Close the connections that MLflow keeps to a database."""
    from mlflow.tracking._tracking_service.utils import _get_store

    _get_store(uri).engine.dispose()
