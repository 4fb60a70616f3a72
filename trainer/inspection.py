"""What can be said about checkpoints without touching them: for `reste ckpt list` and `reste ckpt verify`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import checkpoint, checkpoints
from trainer.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """One checkpoint as it lies on the disk.

    Attributes:
        path: its folder.
        step: completed optimizer steps, by its name if it has no readable manifest; None where unknown.
        epoch: the same in epochs; None where unknown.
        top1: percent, of the newest evaluation before it; None if there was none.
        bytes: size of all its files.
        time: when it was saved, unix seconds; None where unknown.
        best: whether it is the run's best.
        problems: what is wrong with it, one line each; empty if every byte is as it was written.
    """

    path: Path
    step: int | None
    epoch: float | None
    top1: float | None
    bytes: int
    time: float | None
    best: bool
    problems: list[str]


def folder_of(run: Path) -> Path:
    """The folder of checkpoints that a path to a run, or to that folder itself, means.

    Raises:
        ConfigError: there is none.
    """
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if not _named(folder):
        raise ConfigError(f"{run} holds no checkpoint: name a run folder, e.g. runs/digits")
    return folder


def _named(folder: Path) -> list[Path]:
    """Every folder with a checkpoint's name, oldest first, however little is left of it."""
    return sorted((path for path in folder.glob("step_*") if checkpoint.step_of(path) >= 0), key=checkpoint.step_of)


def survey(folder: Path) -> list[Entry]:
    """All checkpoints of a run, oldest first, every byte of them read."""
    best = checkpoints.best(folder)
    return [look(path, best=path.resolve() == best) for path in _named(folder)]


def look(path: Path, *, best: bool = False) -> Entry:
    """One checkpoint, every byte of it read."""
    faults, facts = _faults(path), _facts(path)
    progress = facts.get("progress", {})
    steps_per_epoch = facts.get("steps_per_epoch")
    step = progress.get("step", checkpoint.step_of(path) if checkpoint.step_of(path) >= 0 else None)
    top1 = progress.get("last", {}).get("val/top1")
    return Entry(
        path=path,
        step=step,
        epoch=None if step is None or not steps_per_epoch else step / steps_per_epoch,
        top1=top1 if top1 is not None and math.isfinite(top1) else None,
        bytes=sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        time=facts.get("time"),
        best=best,
        problems=faults,
    )


def _faults(path: Path) -> list[str]:
    try:
        return checkpoint.problems(path)
    except ConfigError as error:
        return [str(error)]


def _facts(path: Path) -> dict[str, Any]:
    try:
        return checkpoint.read_manifest(path)
    except ConfigError:
        return {}


def verify(path: Path) -> list[Entry]:
    """The checkpoint that a path names, or all of the run that it names.

    Raises:
        ConfigError: it names neither.
    """
    path = path.resolve()
    alone = checkpoint.step_of(path) >= 0 or (path / "model.pt").is_file()
    return [look(path)] if alone and path.is_dir() else survey(folder_of(path))


def stand_in(entry: Entry) -> Path | None:
    """What a start of the run that a checkpoint belongs to goes on from: its newest good one, None if there is none."""
    good = [other.path for other in survey(entry.path.parent) if not other.problems]
    return good[-1] if good else None
