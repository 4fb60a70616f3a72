"""Sends a journal to MLflow, for the sender thread and for `reste track sync`. It blocks and raises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.tracking.files import FileLock
from trainer.tracking.journal import milliseconds, read_journal
from trainer.tracking.orphans import LOCK_NAME, end_gone
from trainer.tracking.sent import SentFile
from trainer.tracking.store import MAX_METRICS, MlflowStore, Point


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is sent where. `uri` is absolute, `params` the flat configuration; `artifacts` may be missing."""

    run_dir: Path
    journal_path: Path
    uri: str
    experiment: str
    run_name: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: Sequence[Path] = ()


def parent_tags(parent: str | None) -> dict[str, str]:
    """What makes MLflow show a run below its parent, given the parent's run id."""
    return {} if parent is None else {"mlflow.parentRunId": parent}


class RunLockedError(RuntimeError):
    """Another process sends this run."""


@dataclass
class _Batch:
    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    offset: int = 0
    time_ms: int | None = None


class Replay:
    """Brings one MLflow run up to date with one journal; every method can be repeated after it raised."""

    def __init__(self, target: Target, *, down: Callable[[], bool] = lambda: False) -> None:
        """Remember what to send; nothing is contacted before `open`. Every call fails while `down` says so."""
        self._target = target
        self._store = MlflowStore(target.uri, target.experiment, down=down)
        self._lock = FileLock(target.run_dir / LOCK_NAME)
        self._file = SentFile(target.run_dir, target.uri)
        self._ready = False
        self._looked_beside = False
        self._offset = 0
        self._last_ms: int | None = None
        self._run_id = ""
        self.points = 0
        """Points sent so far."""

    @property
    def uri(self) -> str:
        """The absolute address of the store."""
        return self._target.uri

    @property
    def directory(self) -> Path:
        """The folder whose run this is."""
        return self._target.run_dir

    @property
    def run_id(self) -> str:
        """The MLflow run; empty before `open` succeeded."""
        return self._run_id

    def open(self) -> None:
        """Connect, find or make the run and describe it; does nothing once that succeeded."""
        if self._ready:
            return
        if not self._lock.acquire():
            raise RunLockedError(f"another process is sending {self._target.run_dir} to MLflow")
        self._sent = self._file.load()
        self._file.save(self._sent)
        self._store.open()
        if self._sent.run_id is None:
            self._sent.run_id = self._store.find_or_make_run(
                self._sent.key, self._target.run_name, start_ms=self._first_ms()
            )
            self._file.save(self._sent)
        self._run_id = self._sent.run_id
        self._sent.ended = None
        self._settle()
        self._store.describe(self._run_id, self._target.params, self._target.tags)
        # The journal may have been cut and have grown again since: it is read from its beginning, and `steps`
        # tells what to leave out.
        self._offset = self._sent.sent_offset = 0
        self._ready = True

    def send(self) -> None:
        """Send all of the journal that was not sent."""
        while (batch := self._next_batch()).offset > self._offset:
            if batch.steps:
                self._sent.pending = batch.steps
                self._sent.probe = (batch.points[0].key, batch.points[0].step) if batch.points else None
                self._file.save(self._sent)
                self._store.log(self._run_id, batch.points)
                self._store.set_tags(self._run_id, batch.tags)
            self._record(batch)
            self._offset = batch.offset
            self._last_ms = batch.time_ms
            self.points += len(batch.points)

    def upload(self) -> None:
        """Store the artifacts that exist and were not stored as they are now."""
        for path in self._target.artifacts:
            if not path.is_file():
                continue
            stamp = f"{path.stat().st_size}-{path.stat().st_mtime_ns}"
            if self._sent.artifacts.get(path.name) != stamp:
                self._store.upload(self._run_id, path)
                self._sent.artifacts[path.name] = stamp
                self._file.save(self._sent)

    def end(self, status: str) -> None:
        """End the MLflow run as FINISHED, KILLED or FAILED, at the time of the journal's last line."""
        self._store.end(self._run_id, status, end_ms=self._last_ms)
        self._sent.ended = status
        self._file.save(self._sent)

    def adopt(self, folders: Iterable[Path]) -> None:
        """Show the runs of these folders, as far as this store has them, below this one."""
        for folder in folders:
            child = SentFile(folder, self._target.uri).load().run_id
            if child is not None:
                self._store.set_tags(child, parent_tags(self._run_id))

    def beat(self) -> None:
        """Show other machines that this run is being looked after."""
        self._lock.touch()

    def end_gone(self) -> None:
        """Once, end the runs beside this one that MLflow shows as running and whose process has gone."""
        if not self._looked_beside:
            end_gone(self._target.run_dir, self._store)
            self._looked_beside = True

    def close(self) -> None:
        """Let other processes send this run."""
        self._lock.release()

    def _settle(self) -> None:
        """After a crash in the middle of a batch, ask whether it arrived before new lines are sent."""
        if self._sent.probe is not None and self._store.has_point(self._run_id, *self._sent.probe):
            self._sent.steps.update(self._sent.pending)
        self._sent.pending, self._sent.probe = {}, None
        self._file.save(self._sent)

    def _first_ms(self) -> int | None:
        path = self._target.journal_path
        return next((milliseconds(record) for _, record in read_journal(path)), None) if path.exists() else None

    def _record(self, batch: _Batch) -> None:
        self._sent.steps.update(batch.steps)
        self._sent.pending, self._sent.probe = {}, None
        self._sent.sent_offset = batch.offset
        self._file.save(self._sent)

    def _next_batch(self) -> _Batch:
        """The next records, as many as fit into one call, at least one."""
        batch = _Batch(offset=self._offset)
        if not self._target.journal_path.exists():
            return batch
        for offset, record in read_journal(self._target.journal_path, self._offset):
            if record["type"] == "metrics":
                if batch.points and len(batch.points) + len(record["metrics"]) > MAX_METRICS:
                    break
                self._collect(record, batch)
            batch.offset, batch.time_ms = offset, milliseconds(record)
        return batch

    def _collect(self, record: Mapping[str, Any], batch: _Batch) -> None:
        step = int(record["step"])
        for key, value in record["metrics"].items():
            if step <= batch.steps.get(key, self._sent.steps.get(key, -1)):
                continue
            batch.steps[key] = step
            if math.isfinite(value):
                batch.points.append(Point(key, value, milliseconds(record), step))
            else:
                batch.tags[f"nonfinite/{key}"] = f"{value} at step {step}"
