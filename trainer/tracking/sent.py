"""tracking.json: which MLflow run a run folder is, and what that MLflow run has been sent.

One point per metric and step is sent, the first one. A resumed run goes through some steps again; the journal
is cut and their lines are written once more with new times, and MLflow would keep both. Their values are the
same, so the second ones are left out: `steps` holds, for each metric, the last step that was sent.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.secrets import redact, without_credentials
from trainer.tracking.address import default_uri, resolve_uri
from trainer.tracking.files import write_json

FILE_NAME = "tracking.json"
_DEFAULT = "default"


@dataclass
class Sent:
    """What one store has.

    `key` is a tag of the MLflow run, made up before the run, so that a run made just before a crash is found
    again. `pending` is written before a batch is sent and emptied after it, for the same reason; `probe` is
    one point of that batch, `[metric, step]`. `ended` is how the MLflow run was ended, None while it says RUNNING.
    """

    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str | None = None
    sent_offset: int = 0
    steps: dict[str, int] = field(default_factory=dict)
    pending: dict[str, int] = field(default_factory=dict)
    probe: tuple[str, int] | None = None
    artifacts: dict[str, str] = field(default_factory=dict)
    ended: str | None = None


class SentFile:
    """Reads and replaces `run_dir/tracking.json`: an entry per store, under its address without passwords."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        """Remember the place; `uri` is an address made absolute by `resolve_uri`."""
        self._path = run_dir / FILE_NAME
        # The store beside the run folder keeps its entry when both are moved together.
        self._entry = _DEFAULT if uri == default_uri(run_dir) else redact(without_credentials(uri))

    def load(self) -> Sent:
        """What this store was sent; a new `Sent` if nothing yet."""
        entry = _read(self._path)["stores"].get(self._entry)
        return Sent() if entry is None else Sent(**entry)

    def save(self, sent: Sent, *, current: bool = True) -> None:
        """Write it so that a crash leaves the old file or the new one; `current`: this store is the one in use."""
        content = _read(self._path)
        content["current"] = self._entry if current else content["current"]
        content["stores"][self._entry] = asdict(sent)
        write_json(self._path, content)


def mlflow_run(run_dir: Path) -> tuple[str, str] | None:
    """`(uri, run_id)` of the MLflow run this folder was last sent to; None if it never was."""
    content = _read(run_dir / FILE_NAME)
    entry = content["stores"].get(content["current"], {})
    if not entry.get("run_id"):
        return None
    return resolve_uri(None if content["current"] == _DEFAULT else content["current"], run_dir), entry["run_id"]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        Sent(**content["stores"].get(content["current"], {}))
    except FileNotFoundError:
        return {"version": 1, "current": _DEFAULT, "stores": {}}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path} is damaged: delete it, and the journal is sent to a new MLflow run") from None
    return content
