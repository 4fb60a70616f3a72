"""What every study has: the trainings it consists of, which of them are finished, and how they scored.

Nothing here starts a process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from trainer.config import Config, load_config
from trainer.errors import ConfigError, DataError
from trainer.resume import differences
from trainer.tracking.address import resolve_uri, sqlite_path


@dataclass(frozen=True)
class Point:
    """One training: its seed, the folder it has in the study's, and the overrides that are its own."""

    seed: int
    name: str
    overrides: tuple[str, ...]


P = TypeVar("P", bound=Point)


@dataclass(frozen=True)
class Sweep(Generic[P]):
    """All trainings of a study.

    Attributes:
        path: the configuration file that they share.
        config: what it says, with the user's overrides.
        directory: the study's folder.
        given: the user's overrides, for all trainings.
        points: in the order of training.
        fixed: the study's overrides, which win over all others.
    """

    path: Path
    config: Config
    directory: Path
    given: tuple[str, ...]
    points: tuple[P, ...]
    fixed: tuple[str, ...]

    @property
    def uri(self) -> str:
        """MLflow's store: the one that an ordinary run of this configuration has."""
        return resolve_uri(self.config.tracking.uri, self.config.run_dir)

    @property
    def folders(self) -> list[Path]:
        """The run folders of all trainings."""
        return [self.folder(point) for point in self.points]

    def folder(self, point: P) -> Path:
        """The run folder of a training."""
        return self.directory / point.name

    def overrides(self, point: P) -> list[str]:
        """Every `key=value` of a training."""
        return [*self.given, *point.overrides, *self.fixed]

    def configuration(self, point: P) -> Config:
        """What a training is told."""
        return load_config(self.path, self.overrides(point))


def keys_of(overrides: Iterable[str]) -> set[str]:
    """The keys that `key=value` strings set."""
    return {override.partition("=")[0].strip() for override in overrides}


def refuse_taken(overrides: Iterable[str], taken: Mapping[str, str]) -> None:
    """Refuse overrides of keys that are the study's to set; `taken` holds them, each with what to do instead.

    Raises:
        ConfigError: one of the keys is among the overrides.
    """
    for key in sorted(keys_of(overrides) & taken.keys()):
        raise ConfigError(f"{key} is the study's to set: leave it out ({taken[key]})")


def fixed_overrides(config: Config, directory: Path) -> dict[str, object]:
    """What a study tells all of its trainings: to go on, where they live, and which MLflow store they share."""
    fixed: dict[str, object] = {"resume": "auto", "run.dir": str(directory)}
    uri = resolve_uri(config.tracking.uri, config.run_dir)
    # Any other address is the same from every run's folder, and may hold a password, which all users of a machine
    # could read on a command line.
    if sqlite_path(uri) is not None:
        fixed["tracking.uri"] = uri
    return fixed


def written(values: Mapping[str, object]) -> tuple[str, ...]:
    """Values as overrides. JSON is YAML: quoted, a folder's name means itself."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in values.items())


def is_finished(sweep: Sweep[P], point: P) -> bool:
    """Whether a training has come to its end.

    Raises:
        ConfigError: its folder holds a run of another configuration.
    """
    folder, wanted = sweep.folder(point), sweep.configuration(point)
    if not (folder / "config.yaml").is_file():
        return False
    saved = load_config(folder / "config.yaml")
    changed = differences(saved, wanted)
    if changed:
        raise ConfigError(
            f"{folder} was trained under another configuration ({'; '.join(changed)}): name another folder with --out"
        )
    return (folder / "result.json").is_file() and saved.train.max_steps == wanted.train.max_steps


@dataclass(frozen=True)
class Scores:
    """How a training ended.

    Attributes:
        top1: top-1 accuracy at the end, percent.
        best_top1: the best one on the way, percent.
        loss: validation loss at the end.
        seconds: time of training, over all of its starts.
        last_epoch: its first step.
    """

    top1: float
    best_top1: float
    loss: float
    seconds: float
    last_epoch: int


def read_scores(folder: Path) -> Scores:
    """Read a finished run's result.

    Raises:
        DataError: it is damaged.
    """
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        final, best = result["final"], result["best"]
        return Scores(
            top1=float(final["top1"]),
            best_top1=float(best["top1"]),
            loss=float(final["loss"]),
            seconds=float(result["seconds"]),
            last_epoch=result["steps"] - result["steps_per_epoch"] + 1,
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder / 'result.json'} is damaged: delete {folder} to train it again") from None
