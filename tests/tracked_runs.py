"""Run folders with a journal and MLflow beside them, and what MLflow has of them; for tests of tracking."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow_server import until

from trainer.tracking.journal import Journal, read_journal
from trainer.tracking.mlflow_sink import MlflowSender

FAST = {"poll_s": 0.05, "longest_wait_s": 0.5}


def run_folder(tmp_path: Path, empty_store: Path, name: str = "digits") -> Path:
    """A run folder as training leaves it, beside a store."""
    folder = tmp_path / "runs" / name
    folder.mkdir(parents=True)
    if not (tmp_path / "runs" / "mlflow.db").exists():
        shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    config = {
        "run": {"name": name},
        "optim": {"lr": 0.05},
        "tracking": {"uri": None, "experiment": "reste"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "manifest.json").write_text(json.dumps({"world_size": 2, "code": {"commit": "abc", "dirty": False}}))
    return folder


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def sender(run_dir: Path, uri: str | None = None, **options: Any) -> MlflowSender:
    given = {"uri": uri, "experiment": "reste", "run_name": run_dir.name, **FAST, **options}
    return MlflowSender(run_dir / "journal.jsonl", run_dir=run_dir, **given)


def train(journal: Journal, steps: range) -> None:
    for step in steps:
        journal.write({"train/loss": 1 / (step + 1), "optim/lr": 0.05}, step=step)
        if step % 10 == 0:
            journal.write({"val/top1": float(step)}, step=step)


def in_store(uri: str, run_id: str) -> Counter[tuple[str, int, float, int]]:
    """Every row of the metric table, so that duplicates count."""
    store, rows = client(uri), Counter()
    for key in store.get_run(run_id).data.metrics:
        rows.update((m.key, m.step, m.value, m.timestamp) for m in store.get_metric_history(run_id, key))
    return rows


def in_journal(path: Path) -> Counter[tuple[str, int, float, int]]:
    return Counter(
        (key, record["step"], value, round(record["time"] * 1000))
        for _, record in read_journal(path)
        if record["type"] == "metrics"
        for key, value in record["metrics"].items()
    )


def without_times(rows: Counter[tuple[str, int, float, int]]) -> Counter[tuple[str, int, float]]:
    return Counter(row[:3] for row in rows.elements())


def wait_for_offset(run_dir: Path, offset: int, seconds: float = 30.0) -> None:
    def sent() -> bool:
        path = run_dir / "tracking.json"
        content = json.loads(path.read_text()) if path.exists() else {"stores": {}}
        return any(entry["sent_offset"] >= offset for entry in content["stores"].values())

    until(sent, seconds)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
