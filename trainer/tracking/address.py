"""Where MLflow's store is: the `tracking.uri` of a run made absolute, and how to look at it."""

from __future__ import annotations

import shlex
from pathlib import Path

from trainer.errors import ConfigError
from trainer.secrets import HIDDEN, redact, without_credentials

_SQLITE = "sqlite:///"


def default_uri(run_dir: Path) -> str:
    """The SQLite store beside the run folder, shared by all runs of that parent: `sqlite:////.../runs/mlflow.db`."""
    return f"{_SQLITE}{run_dir.resolve().parent / 'mlflow.db'}"


def resolve_uri(uri: str | None, run_dir: Path) -> str:
    """Make `tracking.uri` absolute; None means `default_uri`.

    Raises:
        ConfigError: The address is a folder (MLflow 3 refuses file stores) or a store in memory.
    """
    if uri is None:
        return default_uri(run_dir)
    if uri.startswith("file:") or ("://" not in uri and uri != "databricks"):
        raise ConfigError(
            f"tracking.uri={redact(uri)} is a folder, which MLflow 3 refuses: use null or sqlite:///FOLDER/mlflow.db"
        )
    path = sqlite_path(uri)
    if path is None:
        return uri
    if path.name in ("", ":memory:"):
        raise ConfigError(f"tracking.uri={redact(uri)} is a store in memory: use null or sqlite:///FOLDER/mlflow.db")
    return f"{_SQLITE}{path.absolute()}"


def contactable(uri: str) -> str:
    """The address to use for one that was stored without its secrets.

    A server's user and password may also come from the environment or MLflow's own file of credentials, so that
    their place in the address can be left empty; any other secret is needed again.

    Raises:
        ConfigError: a secret is missing.
    """
    bare = without_credentials(uri) if uri.startswith(("http://", "https://")) else uri
    if HIDDEN in bare:
        raise ConfigError(f"the password of {uri} is not kept in the run's folder: give the whole address with --uri")
    return bare


def sqlite_path(uri: str) -> Path | None:
    """The database file of an SQLite address, None for any other address."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else Path()


def artifact_location(uri: str, experiment: str) -> str | None:
    """Where the artifacts of a new experiment go: beside an SQLite store; None leaves it to the server."""
    path = sqlite_path(uri)
    return None if path is None else (path.parent / "mlartifacts" / experiment).as_uri()


def mlflow_command(uri: str) -> str:
    """What to type to see the runs; the address itself, without a password, if a server is running there."""
    if uri.startswith(("http://", "https://")):
        return without_credentials(uri)
    return f"mlflow ui --backend-store-uri {shlex.quote(redact(uri))}"
