"""A run with passwords and keys: nothing that it leaves, sends or prints holds one, and it goes on all the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow_server import Proxy, Server
from trainings import QUICK, SMALL, reste

from trainer.tracking.sent import mlflow_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("default::ResourceWarning")]
PASSWORD = "hunter2-of-ann"
KEY, TOKEN = "wJalrXUtnFEMI-K7MDENG", "FwoGZXIvYXdzEBYaDH"
WRONG = "another-password"


def holding(folder: Path) -> list[str]:
    """Files below a folder that hold a secret, by name or content."""
    secrets = [secret.encode() for secret in (PASSWORD, KEY, TOKEN, WRONG)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(s in path.read_bytes() or s in str(path).encode() for s in secrets)]


def test_no_secret_is_left_sent_or_printed(
    tmp_path: Path, digits: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server").mkdir()
    shutil.copy(empty_store, tmp_path / "server" / "mlflow.db")
    server = Server(tmp_path / "server")
    server.start()
    proxy = Proxy(server.port)
    proxy.login = f"ann:{PASSWORD}"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    printed = []

    def command(code: int, *words: str) -> str:
        done = reste(*words)
        assert done.returncode == code, done.stderr
        printed.append(done.stdout + done.stderr)
        return printed[-1]

    runs = tmp_path / "runs"
    folder = runs / "x"
    common = [str(QUICK), *SMALL[:-1], "data.loader=torchvision", f"data.root={digits}", f"run.dir={runs}"]
    common += ["run.name=x", "train.epochs=1", "checkpoint.every=2", "log.indicators_every=0"]
    bare, full, wrong = (f"tracking.uri={uri}" for uri in (proxy.uri, with_login(proxy), with_login(proxy, WRONG)))
    try:
        command(0, "train", *common, full, "--dry-run")
        command(2, "train", *common, full, f"tracking.enabled={with_login(proxy)}")
        command(0, "train", *common, full, "train.max_steps=4")
        first = mlflow_run(folder)
        assert PASSWORD not in (folder / "config.yaml").read_text()
        # The secret from the environment, the address without it: the same store, the same run.
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        command(0, "train", *common, bare, "train.max_steps=8")
        assert mlflow_run(folder) == first
        command(0, "track", "sync", str(folder))
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", WRONG)
        assert "MLFLOW_TRACKING_PASSWORD" in command(2, "doctor", *common, bare)
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        command(0, "train", *common, wrong, "train.max_steps=12")
        command(0, "status", str(folder))
        monkeypatch.setenv("RESTE_SLURM_SITE", str(QUICK.parent / "no-site.yaml"))
        command(2, "slurm", "render", *common, full, "--gpus-per-node=0", "--ranks-per-node=1")
    finally:
        proxy.close()
        server.kill()
    assert holding(tmp_path) == []
    told = "\n".join(printed)
    assert not [secret for secret in (PASSWORD, KEY, TOKEN, WRONG) if secret in told]
    assert "***" in told
    assert len(list((folder / "checkpoints").glob("step_*/config.yaml"))) >= 2, "there was something to look at"


def with_login(proxy: Proxy, password: str = PASSWORD) -> str:
    return proxy.uri.replace("://", f"://ann:{password}@")
