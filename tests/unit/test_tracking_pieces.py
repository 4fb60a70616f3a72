"""The parts of tracking that need no MLflow: addresses, names, flat parameters, tracking.json, locks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from trainer.errors import ConfigError, DataError
from trainer.tracking.address import mlflow_command, resolve_uri
from trainer.tracking.files import FileLock, write_json
from trainer.tracking.sent import Sent, SentFile, mlflow_run
from trainer.tracking.store import clean_name, is_lasting, reason
from trainer.tracking.sync import flatten, manifest_tags

pytestmark = pytest.mark.timeout(30)
ROOT = Path(__file__).parents[2]


def test_importing_tracking_loads_nothing_heavy() -> None:
    code = "import sys, trainer.tracking; print(sorted({'mlflow', 'torch', 'rich', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_default_store_lies_beside_the_run_folder(tmp_path: Path) -> None:
    assert resolve_uri(None, tmp_path / "runs" / "digits") == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_a_relative_database_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///a/mlflow.db", tmp_path) == f"sqlite:///{tmp_path}/a/mlflow.db"
    assert resolve_uri("https://host:5000", tmp_path) == "https://host:5000"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:"])
def test_stores_that_cannot_work_are_refused_with_what_to_write(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"use null or sqlite:///FOLDER/mlflow\.db"):
        resolve_uri(uri, tmp_path)


def test_the_command_to_look_at_runs_can_be_pasted() -> None:
    assert mlflow_command("sqlite:////a b/mlflow.db") == "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db'"
    assert mlflow_command("http://127.0.0.1:5000") == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("indicator/estimating_error/layer1.0.conv1", "indicator/estimating_error/layer1.0.conv1"),
        ("acc@1 (%)", "acc_1 ___"),
        ("/a//b/../c/", "a/c"),
        ("", "_"),
        ("x" * 300, "x" * 250),
    ],
)
def test_names_become_what_mlflow_takes(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=300))
def test_any_name_becomes_a_plain_relative_one(name: str) -> None:
    cleaned = clean_name(name)
    assert 0 < len(cleaned) <= 250
    assert not any(part in ("", "..") for part in cleaned.split("/"))
    assert clean_name(cleaned) == cleaned


def test_a_configuration_becomes_flat_text_without_passwords() -> None:
    config = {
        "seed": 1,
        "optim": {"lr": 0.05, "milestones": [30, 60], "clip": None, "nesterov": True},
        "extra": {},
        "tracking": {"uri": "http://ann:hunter2@host"},
    }
    assert flatten(config) == {
        "seed": "1",
        "optim.lr": "0.05",
        "optim.milestones": "[30, 60]",
        "optim.clip": "null",
        "optim.nesterov": "true",
        "extra": "{}",
        "tracking.uri": "http://***@host",
    }


def test_a_manifest_becomes_tags_and_what_is_unknown_none() -> None:
    tags = manifest_tags({"world_size": 2, "code": {"commit": "abc", "dirty": False}, "data_digest": None})
    assert tags == {"world_size": "2", "mlflow.source.git.commit": "abc", "dirty": "False"}


def test_what_was_sent_is_kept_for_each_store_without_its_password(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    run_dir.mkdir(parents=True)
    assert mlflow_run(run_dir) is None
    local = SentFile(run_dir, resolve_uri(None, run_dir))
    server = SentFile(run_dir, "http://ann:hunter2@host")
    local.save(Sent(key="k", run_id="one", steps={"x": 3}, probe=("x", 3)))
    server.save(Sent(key="q", run_id="two"))
    assert local.load().steps == {"x": 3}
    assert server.load().run_id == "two"
    assert SentFile(run_dir, "http://bob:other@host").load().run_id == "two", "whoever asks, it is the same store"
    assert mlflow_run(run_dir) == ("http://host", "two")
    assert "hunter2" not in (run_dir / "tracking.json").read_text()


def test_a_moved_runs_folder_keeps_its_mlflow_run(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "a", tmp_path / "new" / "a"
    old.mkdir(parents=True)
    SentFile(old, resolve_uri(None, old)).save(Sent(run_id="one"))
    old.parent.rename(new.parent)
    assert SentFile(new, resolve_uri(None, new)).load().run_id == "one"
    assert mlflow_run(new) == (f"sqlite:///{tmp_path}/new/mlflow.db", "one")


@pytest.mark.parametrize("content", ["", "[]", '{"stores": {}}', '{"current": "x", "stores": {"x": {"odd": 1}}}'])
def test_a_damaged_tracking_file_says_what_deleting_it_does(tmp_path: Path, content: str) -> None:
    (tmp_path / "tracking.json").write_text(content)
    with pytest.raises(DataError, match="sent to a new MLflow run"):
        mlflow_run(tmp_path)


def test_two_runs_have_different_keys() -> None:
    assert Sent().key != Sent().key


def test_writing_json_to_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [other.name for other in tmp_path.iterdir()] == ["a.json"]


def test_processes_and_threads_that_write_one_file_at_once_do_not_spoil_each_others(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    code = (
        "import sys, threading\nfrom pathlib import Path\nfrom trainer.tracking.files import write_json\n"
        "def write(me):\n    for _ in range(200): write_json(Path(sys.argv[1]), {'by': me * 1000}, durable=False)\n"
        "threads = [threading.Thread(target=write, args=[sys.argv[2] + n]) for n in 'ab']\n"
        "threading.excepthook = lambda args: print(args.exc_value, file=sys.stderr)\n"
        "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
    )
    write_json(path, {"by": "nobody"})
    writers = [subprocess.Popen([sys.executable, "-c", code, path, me], stderr=subprocess.PIPE) for me in "12"]
    while any(writer.poll() is None for writer in writers):
        assert json.loads(path.read_text())["by"]
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    assert [other.name for other in tmp_path.iterdir()] == ["status.json"]


def test_a_lock_excludes_other_processes_and_dies_with_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, os, time; from pathlib import Path; from trainer.tracking.files import FileLock\n"
        "print(FileLock(Path(sys.argv[1])).acquire(), flush=True)\n"
        "if os.fork() == 0: time.sleep(1.5); os._exit(0)\n"  # a helper that outlives its parent
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == "True\n"
        mine = FileLock(path)
        assert not mine.acquire()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert mine.acquire()
        assert mine.acquire()
        mine.release()
        mine.release()


def test_a_missing_mlflow_is_a_lasting_reason_and_an_outage_is_not() -> None:
    assert is_lasting(ModuleNotFoundError("No module named 'mlflow'"))
    assert not is_lasting(ConnectionError("refused"))
    assert "pip install mlflow" in reason(ModuleNotFoundError("No module named 'mlflow'"))
    assert reason(ValueError("http://ann:hunter2@host is down\nmore")) == "http://***@host is down"
    assert reason(ValueError()) == "ValueError"
