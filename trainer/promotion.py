"""`reste promote`: an alias moves to another version, if that is better on the same data."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.errors import ConfigError, UserError
from trainer.tracking.registry import SCHEME, Registry, Score, Version

OTHERS_S = 300.0
"""How long to wait for other promotions."""
METRICS = {"top1": True, "top5": True, "loss": False}
"""Whether more is better."""


@dataclass(frozen=True)
class Promoted:
    """What `promote` did: `before` had the alias; scores are None where they were not asked for."""

    version: Version
    alias: str
    before: Version | None
    score: float | None
    score_before: float | None


def promote(name: str, number: str, alias: str, *, uri: str, if_better: str | None = None) -> Promoted:
    """Let `alias` name a version of `name`.

    Args:
        name: registered name.
        number: of the version.
        alias: its new name, e.g. champion.
        uri: the store, absolute.
        if_better: "top1", "top5" or "loss": only if the version scores better there than the one that has the alias.

    Raises:
        ConfigError: unknown version or metric; not better, not evaluated, or evaluated on other data. The alias
            stays where it was.
        UserError: MLflow does not answer or refuses.
    """
    if if_better is not None and if_better not in METRICS:
        raise ConfigError(f"--if-better {if_better}: choose one of {', '.join(METRICS)}")
    registry = Registry(uri)
    version = registry.version(f"{SCHEME}{name}/{number}")
    with _turn(uri):
        before = registry.aliased(name, alias)
        score = score_before = None
        if if_better is not None:
            score = _score(registry, version, if_better)
            if before is not None and before.number != version.number:
                score_before = _score(registry, before, if_better)
                _check_better(version, score, before, score_before, if_better, alias)
        registry.set_alias(version, alias)
    value, value_before = (None if each is None else each.value for each in (score, score_before))
    return Promoted(version, alias, before, value, value_before)


@contextmanager
def _turn(uri: str) -> Iterator[None]:
    """Promotions of one store from this machine, one after the other: MLflow moves an alias, it does not compare."""
    name = f"reste-promote-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    lock = FileLock(Path(tempfile.gettempdir()) / name)
    try:
        lock.acquire(timeout=OTHERS_S)
    except Timeout:
        raise UserError(
            f"another promotion has held {lock.lock_file} for {OTHERS_S:.0f} s: end it, and start again"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _score(registry: Registry, version: Version, metric: str) -> Score:
    found = registry.scores(version).get(f"val/{metric}")
    if found is None:
        raise ConfigError(
            f"{version} has no {metric}, its checkpoint was not evaluated: register one that was, or promote without "
            "--if-better"
        )
    return found


def _check_better(version: Version, new: Score, before: Version, old: Score, metric: str, alias: str) -> None:
    if new.digest is None or new.digest != old.digest:
        raise ConfigError(
            f"{version} was evaluated on other data ({new.digest}) than {alias}, {before} ({old.digest}): evaluate "
            "both on the same, or promote without --if-better"
        )
    # Written so that NaN, of which no comparison is true, is never better.
    if not (new.value > old.value if METRICS[metric] else new.value < old.value):
        raise ConfigError(
            f"{version} is not better than {alias}, {before} ({metric} {new.value:.6g} against {old.value:.6g}): "
            "the alias stays"
        )
