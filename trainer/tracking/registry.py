"""MLflow's model registry: versions of a name, what they score, and aliases. It blocks and raises.

A version points to a LoggedModel, which holds the files, the tags that say where it comes from, and its metrics, each
with the digest of the data that it was measured on.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import ConfigError, UserError
from trainer.secrets import redact
from trainer.tracking.address import resolve_uri, sqlite_path
from trainer.tracking.store import MlflowStore, clean_name, connect, is_lasting, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DIGEST_LENGTH = 32
"""Hexadecimal places of a data digest that MLflow has room for."""

_MISSING = "RESOURCE_DOES_NOT_EXIST"
SCHEME = "models:/"


@dataclass(frozen=True)
class Score:
    """A metric of a registered model; `digest` is of the data, None if MLflow was not told."""

    value: float
    digest: str | None


@dataclass(frozen=True)
class Version:
    """A version of a registered name."""

    name: str
    number: str
    model_id: str
    tags: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


def registry_uri(given: str | None) -> str:
    """The store to ask where no run says which: `given`, MLFLOW_TRACKING_URI, or `runs/mlflow.db` here.

    Raises:
        ConfigError: none of them is there.
    """
    here = Path("runs")
    named = given or os.environ.get("MLFLOW_TRACKING_URI")
    uri = resolve_uri(named, here / "run")
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise ConfigError(f"there is no MLflow store at {path}: name it with --uri, or register a checkpoint first")
    return uri


class Registry:
    """One MLflow store, seen as a registry. Every method raises `UserError` with MLflow's reason."""

    def __init__(self, uri: str) -> None:
        """Connect; `uri` is absolute."""
        self.uri = uri
        with _told(uri):
            self._client: MlflowClient = connect(uri)
            import mlflow

            # A file's registry asks the store of the process for the model that a version is made of.
            mlflow.set_tracking_uri(uri)

    def version(self, uri: str) -> Version:
        """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means.

        Raises:
            ConfigError: it is no such address, or nothing is registered under it.
        """
        name, alias, number = _parse(uri)
        if alias:
            found = self.aliased(name, alias)
        else:
            found = self._look_up(lambda: self._client.get_model_version(name, number))
        if found is None:
            raise ConfigError(f"{uri} is not in the registry at {redact(self.uri)}: name another store with --uri")
        return found

    def find(self, name: str, tag: str, value: str) -> Version | None:
        """A version of a name with this tag, if there is one."""
        with _told(self.uri):
            for each in self._client.search_model_versions(f"name = '{name}'", max_results=10_000):
                if each.tags.get(tag) == value:
                    return _version(each)
        return None

    def aliased(self, name: str, alias: str) -> Version | None:
        """The version that an alias names, None if the alias is not set."""
        return self._look_up(lambda: self._client.get_model_version_by_alias(name, alias))

    def scores(self, version: Version) -> dict[str, Score]:
        """The metrics linked to a version, by name."""
        with _told(self.uri):
            model = self._client.get_logged_model(version.model_id)
        return {metric.key: Score(metric.value, metric.dataset_digest) for metric in model.metrics or []}

    def set_alias(self, version: Version, alias: str) -> None:
        """Let an alias name a version, in one call."""
        with _told(self.uri):
            self._client.set_registered_model_alias(version.name, alias, version.number)

    def download(self, version: Version, folder: Path) -> Path:
        """Copy the files of a version into `folder`; returns where they are."""
        import mlflow.artifacts

        with _told(self.uri):
            location = self._client.get_logged_model(version.model_id).artifact_location
            return Path(mlflow.artifacts.download_artifacts(location, dst_path=str(folder), tracking_uri=self.uri))

    def run_named(self, experiment: str, name: str, *, key: str) -> str:
        """Find or make a run that has nothing but a name, for a model that comes from none; its id.

        Args:
            experiment: made if it is new.
            name: of the run.
            key: which run it is; names may be alike.
        """
        with _told(self.uri):
            store = MlflowStore(self.uri, experiment)
            store.open()
            run_id = store.find_or_make_run(f"registered {key}", name, start_ms=None)
            store.end(run_id, "FINISHED", end_ms=None)
        return run_id

    @contextmanager
    def logged_model(
        self, run_id: str, name: str, *, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> Iterator[str]:
        """A new LoggedModel of a run, by its id; READY after the block, FAILED if that raises."""
        with _told(self.uri):
            experiment = self._client.get_run(run_id).info.experiment_id
            model = self._client.create_logged_model(
                experiment,
                # MLflow forbids here what it allows in the name that is registered.
                name=re.sub(r"[/:.%\"']", "_", name),
                source_run_id=run_id,
                params=dict(params),
                tags=dict(tags),
                model_type="classifier",
            )
        try:
            yield model.model_id
        except BaseException:
            with suppress(Exception):  # what went wrong before is what to tell
                self._client.finalize_logged_model(model.model_id, "FAILED")
            raise
        with _told(self.uri):
            self._client.finalize_logged_model(model.model_id, "READY")

    def upload(self, model_id: str, folder: Path) -> None:
        """Store the files of a LoggedModel."""
        with _told(self.uri):
            self._client.log_model_artifacts(model_id, str(folder))

    def link(
        self, run_id: str, model_id: str, metrics: Mapping[str, float], *, step: int, data: str, digest: str | None
    ) -> None:
        """Say that these metrics of a run at a step are the model's, measured on `data`.

        One that is not finite is left out: databases would keep 0 for it, the best of all losses.
        """
        from mlflow.entities import LoggedModelOutput

        short = None if digest is None else digest[:DIGEST_LENGTH]
        with _told(self.uri):
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=step)])
            for key, value in metrics.items():
                if not math.isfinite(value):
                    continue
                self._client.log_metric(
                    run_id,
                    clean_name(key),
                    value,
                    # With its own time the run's point is the same one; with another it would be there twice.
                    timestamp=self._time_of(run_id, key, step),
                    step=step,
                    dataset_name=data if short else None,
                    dataset_digest=short,
                    model_id=model_id,
                )

    def register(self, name: str, model_id: str, run_id: str, tags: Mapping[str, str]) -> Version:
        """Make a LoggedModel the next version of a name, which is made if it is new."""
        from mlflow.exceptions import MlflowException

        with _told(self.uri):
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            made = self._client.create_model_version(
                name, source=f"{SCHEME}{model_id}", run_id=run_id, tags=dict(tags), model_id=model_id
            )
        return Version(name, str(made.version), model_id, dict(tags))

    def _time_of(self, run_id: str, key: str, step: int) -> int:
        history = self._client.get_metric_history(run_id, clean_name(key))
        return next((point.timestamp for point in history if point.step == step), round(time.time() * 1000))

    def _look_up(self, ask: Callable[[], ModelVersion]) -> Version | None:
        from mlflow.exceptions import MlflowException

        with _told(self.uri):
            try:
                return _version(ask())
            except MlflowException as error:
                if error.error_code in (_MISSING, "INVALID_PARAMETER_VALUE"):
                    return None
                raise


def _version(found: ModelVersion) -> Version:
    # A store of files and databases does not give back the model's id itself.
    model_id = found.model_id or str(found.source).removeprefix(SCHEME)
    return Version(found.name, str(found.version), model_id, dict(found.tags))


def _parse(uri: str) -> tuple[str, str, str]:
    """Name, alias and number of an address; one of the last two is empty."""
    rest = uri.removeprefix(SCHEME)
    name, at, alias = rest.partition("@")
    if at and name and alias:
        return name, alias, ""
    name, slash, number = rest.partition("/")
    if not (slash and name and number.isdigit()):
        raise ConfigError(f"{uri} is no registered model: write models:/NAME@ALIAS or models:/NAME/VERSION")
    return name, "", number


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # MLflow raises anything
        what, fix = ("refuses", "") if is_lasting(error) else ("cannot be reached", "start it or ")
        raise UserError(
            f"MLflow at {redact(uri)} {what}: {reason(error)}; {fix}name another store with --uri"
        ) from error
