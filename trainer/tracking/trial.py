"""A throw-away run in an MLflow store: written, read back, deleted again."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from pathlib import Path

from trainer.tracking.address import sqlite_path
from trainer.tracking.store import MlflowStore, Point

_STEP, _VALUE = 1, 0.5


def write_and_read_back(uri: str) -> str:
    """Make an experiment, a run, a metric and an artifact; read them back; delete run and experiment.

    Where an SQLite store is yet to be made, a throw-away store is made beside its place instead, and removed.

    Args:
        uri: as `resolve_uri` returns it.

    Returns:
        Where it was written, in words.

    Raises:
        Exception: whatever MLflow raises; `store.reason` says it in a line.
        ValueError: what was read is not what was written.
    """
    database = sqlite_path(uri)
    if database is None or database.exists():
        _try(uri)
        return "the store"
    made = [place for place in (database.parent, *database.parent.parents) if not place.exists()]
    database.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-mlflow-", dir=database.parent))
    try:
        _try(f"sqlite:///{folder / 'mlflow.db'}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process may have begun to use it
            for place in made:
                place.rmdir()
    return "a throw-away store beside its place"


def _try(uri: str) -> None:
    name = f"reste-doctor-{uuid.uuid4().hex}"
    database = sqlite_path(uri)
    try:
        _write_and_read(MlflowStore(uri, name), name)
    finally:
        if database is not None:
            shutil.rmtree(database.parent / "mlartifacts" / name, ignore_errors=True)


def _write_and_read(store: MlflowStore, name: str) -> None:
    store.open()
    try:
        run = store.find_or_make_run(name, name, start_ms=None)
        store.log(run, [Point("doctor/written", _VALUE, 1_000, _STEP)])
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "doctor.txt"
            written.write_text(name, encoding="utf-8")
            store.upload(run, written)
            read = store.download(run, written.name, Path(folder) / "again")
        if not store.has_point(run, "doctor/written", _STEP) or read != name:
            raise ValueError("what was read is not what was written")
    finally:
        store.delete_experiment()
