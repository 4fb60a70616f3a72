"""The screens of `reste register` and `reste promote`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rich.console import Console

from trainer.errors import ConfigError
from trainer.secrets import redact
from trainer.tracking.address import mlflow_command
from trainer.tracking.registry import registry_uri


def register(checkpoint: Path, name: str, *, uri: str | None, weights: str, as_json: bool) -> None:
    """Register a checkpoint and say what can be done with it.

    Raises:
        UserError: as `trainer.registration.register`.
    """
    # Its import takes seconds, which the other commands need not wait for.
    from trainer.registration import register

    done = register(checkpoint, name, uri=uri, weights=weights)
    address = f"models:/{name}/{done.version.number}"
    facts = {
        "name": name,
        "version": done.version.number,
        "model_id": done.version.model_id,
        "address": address,
        "known": done.known,
        "step": done.facts.step,
        "weights": done.facts.weights,
        "metrics": done.facts.metrics,
        "uri": redact(done.uri),
    }
    if as_json:
        print(json.dumps(facts))
        return
    console = Console(highlight=False, soft_wrap=True)
    scores = "".join(f", {key.removeprefix('val/')} {value:.6g}" for key, value in done.facts.metrics.items())
    was = " (registered before)" if done.known else ""
    console.print(f"{address}{was}: step {done.facts.step}, {done.facts.weights}{scores}", markup=False)
    where = _option(done.uri)
    console.print(f"evaluate it: reste evaluate {address} --data ROOT{where}", markup=False)
    console.print(f"promote it:  reste promote {name} {done.version.number} --alias champion{where}", markup=False)
    console.print(f"MLflow page: {mlflow_command(done.uri)}", markup=False)


def _option(uri: str) -> str:
    """What later commands need to find this store."""
    try:
        default = registry_uri(None)
    except ConfigError:
        default = ""
    return "" if default == uri else f" --uri {shlex.quote(redact(uri))}"


def promote(name: str, version: int, alias: str, *, if_better: str | None, uri: str | None, as_json: bool) -> None:
    """Move an alias and say from where to where.

    Raises:
        UserError: as `trainer.promotion.promote`.
    """
    from trainer.promotion import promote

    done = promote(name, str(version), alias, uri=registry_uri(uri), if_better=if_better)
    before = None if done.before is None else done.before.number
    if as_json:
        facts = {"name": name, "alias": alias, "version": done.version.number, "before": before}
        print(json.dumps(facts | {"metric": if_better, "score": done.score, "score_before": done.score_before}))
        return
    was = "new" if before is None else f"was version {before}"
    scores = "" if done.score is None else f"; {if_better} {done.score:.6g}"
    scores += "" if done.score_before is None else f", before {done.score_before:.6g}"
    Console(highlight=False, soft_wrap=True).print(
        f"models:/{name}@{alias} is version {done.version.number} ({was}{scores})", markup=False
    )
