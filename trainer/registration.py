"""`reste register`, and the end of a run with `registry.name`: a checkpoint becomes a version of a registered name."""

from __future__ import annotations

import json
import logging
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer import checkpoint
from trainer.config import load_config
from trainer.errors import ConfigError, UserError
from trainer.export.program import Deployed, evaluated_network, open_checkpoint, save_program, trace_program
from trainer.tracking.address import contactable, resolve_uri
from trainer.tracking.manifest import MANIFEST_FILE
from trainer.tracking.packing import CONFIG, PROGRAM, pack
from trainer.tracking.registry import Registry, Version
from trainer.tracking.sent import SentFile, mlflow_run
from trainer.tracking.store import reason
from trainer.tracking.sync import sync_run

log = logging.getLogger(__name__)
IDENTITY = "weights_sha256"
"""The tag that says which weights a version has."""


@dataclass(frozen=True)
class Registered:
    """What `register` did: `known` if these weights were a version of the name already."""

    version: Version
    uri: str
    facts: Deployed
    known: bool


def register(path: Path, name: str, *, uri: str | None = None, weights: str = "auto") -> Registered:
    """Export a checkpoint and make it a version of a registered name, once.

    Its MLflow run is brought up to date first if it has not ended there. Repeated, it finds the version that it made.

    Args:
        path: a checkpoint, or a run folder (its best checkpoint).
        name: of the registered model; made if it is new.
        uri: the store; None is that of the run.
        weights: "model", "ema", or "auto": the moving average if there is one.

    Raises:
        ConfigError: no whole checkpoint there, or a model that cannot be exported.
        UserError: MLflow does not answer or refuses, or the run goes on and sends to it. No version has been made.
    """
    check_name(name)
    folder, config, facts = open_checkpoint(path, weights)
    run_dir = _run_of(folder)
    store = _store(uri, run_dir)
    identity = checkpoint.read_manifest(folder)["files"][f"{facts.weights}.pt"]["sha256"]
    registry = Registry(store)
    known = registry.find(name, IDENTITY, identity)
    if known is not None:
        return Registered(known, store, facts, known=True)
    with tempfile.TemporaryDirectory(prefix="reste-register-") as made:
        file = save_program(trace_program(evaluated_network(folder, config, facts), facts), facts, Path(made) / PROGRAM)
        run_id = _run_id(run_dir, store) if run_dir else registry.run_named("reste", folder.name, key=identity)
        tags = {**_tags(facts, run_dir), IDENTITY: identity}
        with registry.logged_model(run_id, name, params=_params(facts), tags=tags) as model_id:
            packed = pack(
                Path(made) / "model", file, folder / CONFIG, model_id=model_id, run_id=run_id, facts=asdict(facts)
            )
            registry.upload(model_id, packed)
            data = Path(config.data.root).name
            registry.link(run_id, model_id, facts.metrics, step=facts.step, data=data, digest=facts.data_digest)
        return Registered(registry.register(name, model_id, run_id, tags), store, facts, known=False)


def register_at_end(run_dir: Path, name: str, uri: str | None) -> str:
    """Register the best checkpoint of a run that has just finished, in its store; a line that says what became of it.

    A registry that is away costs the line in which the command to repeat stands, and never the run.
    """
    try:
        done = register(run_dir, name, uri=uri)
    except Exception as error:  # the run is finished, whatever MLflow, torch or the disk raise now
        log.info("not registered: %s", error, exc_info=not isinstance(error, UserError))  # for the log file
        command = shlex.join(["reste", "register", str(run_dir), "--name", name])
        return f"warning: not registered ({reason(error)}); later: {command}"
    return f"registered:  models:/{name}/{done.version.number}"


def check_name(name: str) -> None:
    """Refuse a name that an address could not hold.

    Raises:
        ConfigError: it has a letter of another meaning there.
    """
    if not name.strip() or any(letter in name for letter in "/:@'\"\n"):
        raise ConfigError(f"{name!r} cannot name a registered model: leave out / : @ and quotes")


def _run_of(folder: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None if it lies in none."""
    run_dir = folder.parent.parent
    return run_dir if folder.parent.name == "checkpoints" and (run_dir / "journal.jsonl").is_file() else None


def _store(given: str | None, run_dir: Path | None) -> str:
    if given is not None or run_dir is None:
        named = given or os.environ.get("MLFLOW_TRACKING_URI")
        if named is None:
            raise ConfigError("the checkpoint lies in no run folder: name the MLflow store with --uri")
        return resolve_uri(named, Path("runs/run"))
    sent = mlflow_run(run_dir)
    if sent is not None:
        return contactable(sent[0])
    return _configured_store(run_dir)


def _configured_store(run_dir: Path) -> str:
    configured = load_config(run_dir / "config.yaml").tracking.uri
    return resolve_uri(None if configured is None else contactable(configured), run_dir)


def _run_id(run_dir: Path, store: str) -> str:
    """The MLflow run of a run folder, brought up to date unless it was ended there with all that it has."""
    sent = SentFile(run_dir, store).load()
    if sent.run_id is not None and sent.ended is not None:
        return sent.run_id
    return sync_run(run_dir, uri=None if store == _configured_store(run_dir) else store).run_id


def _params(facts: Deployed) -> dict[str, str]:
    names = ("model", "weight_bits", "activation_bits", "image_size", "resize", "precision", "dtype")
    return {name: str(getattr(facts, name)) for name in names}


def _tags(facts: Deployed, run_dir: Path | None) -> dict[str, str]:
    """Where a model comes from."""
    code: Mapping[str, Any] = _manifest(run_dir).get("code") or {}
    tags = {name: getattr(facts, name) for name in ("config_digest", "data_digest", "step", "world_size", "weights")}
    tags |= {"mlflow.source.git.commit": code.get("commit"), "dirty": code.get("dirty")}
    return {name: str(value) for name, value in tags.items() if value is not None}


def _manifest(run_dir: Path | None) -> dict[str, Any]:
    if run_dir is None:
        return {}
    try:
        return dict(json.loads((run_dir / MANIFEST_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{run_dir / MANIFEST_FILE} cannot be read ({error}): move it away to register without it"
        ) from None
