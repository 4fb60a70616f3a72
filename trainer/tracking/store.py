"""The only calls of MLflow. They block and raise; `mlflow_sink` keeps that away from training.

MLflow is imported by `MlflowStore.open`, since that takes seconds.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from trainer.secrets import redact
from trainer.tracking.address import artifact_location, sqlite_path
from trainer.tracking.files import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_METRICS = 1000
"""Most metrics that MLflow takes in one call."""

T = TypeVar("T")

_MAX_PAIRS = 100
_MAX_NAME = 250
_MIGRATION_S = 60.0
_MAX_VALUE = 5000
_KEY_TAG = "reste.key"
_LASTING = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE"}
_REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
_ENVIRONMENT = {
    # Repeating is the sender's work: it knows what was sent, and MLflow's own retries block for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A project that the user happens to be in is not what a registered model needs.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


class Point(NamedTuple):
    """One value of one metric; `time_ms` is the journal's time in milliseconds."""

    key: str
    value: float
    time_ms: int
    step: int


class StoreBusyError(RuntimeError):
    """Another process makes or migrates the database just now."""


class MlflowStore:
    """One MLflow store and one experiment in it."""

    def __init__(self, uri: str, experiment: str, *, down: Callable[[], bool] = lambda: False) -> None:
        """Remember where; nothing is contacted before `open`. Every call fails while `down` says so."""
        self.uri = uri
        self._experiment = experiment
        self._experiment_id = ""
        self._down = down
        self._connected: MlflowClient

    @property
    def _client(self) -> MlflowClient:
        if self._down():
            raise ConnectionError("it does not answer, as RESTE_FAULTS wants it")
        return self._connected

    def open(self) -> None:
        """Import MLflow, connect, and find or make the experiment."""
        self._connected = connect(self.uri)
        with _alone(sqlite_path(self.uri)):
            self._experiment_id = self._find_or_make_experiment()

    def find_or_make_run(self, key: str, name: str, *, start_ms: int | None) -> str:
        """Run id of the run tagged with `key`; if there is none it is made, as begun at `start_ms`."""
        found = self._client.search_runs([self._experiment_id], f"tags.`{_KEY_TAG}` = '{key}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        run = self._client.create_run(self._experiment_id, start_time=start_ms, run_name=name, tags={_KEY_TAG: key})
        return str(run.info.run_id)

    def describe(self, run_id: str, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Mark the run as running and give it its parameters and tags.

        A parameter cannot be changed in MLflow: a new value goes to the tag `changed/<parameter>`.
        """
        from mlflow.entities import Param

        self._client.update_run(run_id, status="RUNNING")
        old = self._client.get_run(run_id).data.params
        new = {clean_name(key): value[:_MAX_VALUE] for key, value in params.items()}
        missing = [Param(key, value) for key, value in new.items() if key not in old]
        for part in _parts(missing, _MAX_PAIRS):
            self._client.log_batch(run_id, params=part)
        changed = {f"changed/{key}": value for key, value in new.items() if old.get(key, value) != value}
        self.set_tags(run_id, {**tags, **changed})

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Send points; identical ones add nothing. Each 1000 arrive together or not at all."""
        from mlflow.entities import Metric

        metrics = [Metric(clean_name(point.key), point.value, point.time_ms, point.step) for point in points]
        for part in _parts(metrics, MAX_METRICS):
            self._client.log_batch(run_id, metrics=part)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        from mlflow.entities import RunTag

        for part in _parts([RunTag(clean_name(key), value[:_MAX_VALUE]) for key, value in tags.items()], _MAX_PAIRS):
            self._client.log_batch(run_id, tags=part)

    def has_point(self, run_id: str, key: str, step: int) -> bool:
        """Whether the run has a value of metric `key` at `step`."""
        return any(metric.step == step for metric in self._client.get_metric_history(run_id, clean_name(key)))

    def upload(self, run_id: str, path: Path) -> None:
        """Store a file among the run's artifacts."""
        self._client.log_artifact(run_id, str(path))

    def download(self, run_id: str, name: str, folder: Path) -> str:
        """The text of one of the run's artifacts, by way of a file in `folder`."""
        folder.mkdir()
        return Path(self._client.download_artifacts(run_id, name, str(folder))).read_text(encoding="utf-8")

    def delete_experiment(self) -> None:
        """Move the experiment with its runs to MLflow's trash."""
        if self._experiment_id:
            self._client.delete_experiment(self._experiment_id)

    def is_running(self, run_id: str) -> bool:
        """Whether the run has not ended."""
        return str(self._client.get_run(run_id).info.status) == "RUNNING"

    def end(self, run_id: str, status: str, *, end_ms: int | None) -> None:
        """End the run as FINISHED, KILLED or FAILED, at unix time `end_ms` (None: now)."""
        self._client.set_terminated(run_id, status, end_time=end_ms)

    def _find_or_make_experiment(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            try:
                location = artifact_location(self.uri, self._experiment)
                return str(self._client.create_experiment(self._experiment, artifact_location=location))
            except Exception:
                # Another run may have made it in between; if not, the reason stands.
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        return str(found.experiment_id)


def connect(uri: str) -> MlflowClient:
    """Import MLflow and make its client, quietly; an SQLite file is made or migrated."""
    _set_environment()
    _silence()
    from mlflow import MlflowClient

    _silence()
    with _alone(sqlite_path(uri)):
        # Making the client is what makes or migrates the tables.
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def preload(uri: str, experiment: str) -> None:
    """Import what a store needs, and make an SQLite file that is not there yet, before training begins.

    Done in a thread beside training, either would hold Python's lock for seconds.
    """
    _set_environment()
    path = sqlite_path(uri)
    with suppress(Exception):  # the sender meets it again, says it and goes on
        import mlflow

        if path is not None:
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        if path is not None and not path.exists():
            MlflowStore(uri, experiment).open()
    _silence()


def is_lasting(error: Exception) -> bool:
    """Whether asking again is useless: no MLflow here, the run was deleted, or the store refuses the data."""
    return isinstance(error, ImportError) or getattr(error, "error_code", None) in _LASTING


def reason(error: Exception) -> str:
    """First line of an error, short and without passwords."""
    if isinstance(error, ImportError):
        return f"{error}; install it: pip install mlflow"
    lines = redact(str(error)).splitlines()
    told = (lines[0] if lines else type(error).__name__)[:200]
    if getattr(error, "error_code", None) in _REFUSED:
        return f"{told}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return told


def clean_name(name: str) -> str:
    """`name` as MLflow takes it: letters, digits, `_-. /`, no empty or dotted parts, up to 250 characters."""
    allowed = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
    return posixpath.normpath("/" + allowed).strip("/")[:_MAX_NAME].rstrip("/") or "_"


def _parts(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


def _set_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # the whole address, password and all


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """Let one process at a time make or migrate a database file.

    MLflow locks this on one host only; the runs of several nodes share the folder.
    """
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(database.with_name(f".{database.name}.lock"))
    deadline = time.monotonic() + _MIGRATION_S
    while not lock.acquire():
        if time.monotonic() > deadline:
            raise StoreBusyError(f"another process has been opening {database} for {_MIGRATION_S:.0f} s")
        time.sleep(0.2)
    try:
        yield
    finally:
        lock.release()


def _silence() -> None:
    """Keep MLflow's import, migrations and errors off the terminal; the sender reports errors, without passwords.

    The filters are global, but setting them is safe from a thread, unlike `warnings.catch_warnings`.
    """
    warnings.filterwarnings("ignore", module=r"(mlflow|sqlalchemy|alembic)(\.|$)")
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
