"""What is behind `reste track sync RUN`: send later what MLflow does not have, from the run folder alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config_source import read_source
from trainer.errors import ConfigError, DataError, UserError
from trainer.report import COMPARISON, REPORT
from trainer.secrets import redact
from trainer.tracking.address import contactable, resolve_uri
from trainer.tracking.orphans import how_it_ended, is_gone
from trainer.tracking.replay import Replay, RunLockedError, Target, parent_tags
from trainer.tracking.status import read_status
from trainer.tracking.store import is_lasting, reason

ARTIFACTS = ("config.yaml", "manifest.json", "result.json", "deepspeed.json", REPORT, COMPARISON)
"""Files of a run folder that MLflow keeps."""


@dataclass(frozen=True)
class SyncReport:
    """What `sync_run` did: `points` are those MLflow had not had; `status` is None while the run goes on."""

    uri: str
    run_id: str
    points: int
    status: str | None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Make a nested configuration flat, `{"optim.lr": "0.05"}`, for MLflow's parameters; passwords masked."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = redact(value if isinstance(value, str) else json.dumps(value, default=str))
    return flat


def manifest_tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a manifest that tell runs apart, as MLflow tags."""
    code = manifest.get("code") or {}
    tags = {name: manifest.get(name) for name in ("world_size", "config_digest", "data_digest", "command")}
    tags |= {"mlflow.source.git.commit": code.get("commit"), "dirty": code.get("dirty")}
    if "earlier" in manifest:
        tags |= _attempts(manifest["earlier"])
    return {name: str(value) for name, value in tags.items() if value is not None}


def _attempts(earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many starts the run has had, and how each before the last one ended."""
    ends = [(number, start["ended"]) for number, start in enumerate(earlier, 1) if start.get("ended")]
    told = [f"{number} {end.get('state')} at step {end.get('step')}" for number, end in ends]
    return {"attempts": len(earlier) + 1, "attempts/ended": "; ".join(told) or None}


def sync_run(run_dir: Path, *, uri: str | None = None, timeout_s: float = 60.0) -> SyncReport:
    """Send the journal of `run_dir` to MLflow and end the MLflow run as the training run ended.

    Args:
        run_dir: A run folder with `config.yaml` and `journal.jsonl`.
        uri: The store; None is the one in the run's configuration. Another store gets the whole run.
        timeout_s: How long to ask a store that does not answer, in seconds.

    Raises:
        DataError: `run_dir` is not a run folder, or its journal is damaged.
        UserError: The store refuses or does not answer, or another process is sending this run.
    """
    replay = Replay(_target(run_dir, uri))
    last = read_status(run_dir)
    status = how_it_ended(last) if is_gone(run_dir, last) else None
    deadline = time.monotonic() + timeout_s
    try:
        while not _attempt(replay, status, final=time.monotonic() >= deadline):
            time.sleep(min(1.0, timeout_s))
    finally:
        replay.close()
    return SyncReport(redact(replay.uri), replay.run_id, replay.points, status)


def _attempt(replay: Replay, status: str | None, *, final: bool) -> bool:
    """Send everything; False if that failed and may be tried again."""
    try:
        replay.open()
        replay.send()
        replay.upload()
        if status is not None:
            replay.end(status)
    except RunLockedError as error:
        raise UserError(f"{error}: wait until it ends") from None
    except UserError:
        raise
    except Exception as error:  # MLflow raises anything
        if is_lasting(error):
            fix = "restore it, or delete tracking.json in the run folder to send it to a new MLflow run"
            raise UserError(f"MLflow at {redact(replay.uri)} refuses this run: {reason(error)}; {fix}") from None
        if final:
            fix = "start it or name another store with --uri"
            raise UserError(f"MLflow at {redact(replay.uri)} cannot be reached: {reason(error)}; {fix}") from None
        return False
    return True


def _target(run_dir: Path, uri: str | None) -> Target:
    journal = run_dir / "journal.jsonl"
    if not journal.exists():
        raise DataError(f"{journal} is missing: name the folder of a run")
    try:
        config = read_source(run_dir / "config.yaml", []).values
        tracking, name = config["tracking"], config["run"]["name"]
    except (ConfigError, KeyError, TypeError):
        raise DataError(f"{run_dir / 'config.yaml'} is not a run's configuration: name the folder of a run") from None
    return Target(
        run_dir=run_dir,
        journal_path=journal,
        uri=resolve_uri(uri or _stored(tracking.get("uri")), run_dir),
        experiment=str(tracking.get("experiment") or "reste"),
        run_name=str(name),
        params=flatten(config),
        # Another store does not know the parent.
        tags=manifest_tags(_manifest(run_dir)) | parent_tags(None if uri else tracking.get("parent")),
        artifacts=[run_dir / name for name in ARTIFACTS],
    )


def _stored(uri: str | None) -> str | None:
    return None if uri is None else contactable(uri)


def _manifest(run_dir: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run_dir / "manifest.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
