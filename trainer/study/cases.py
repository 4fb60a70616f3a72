"""A study of cases: named lists of overrides, each trained with the same seeds, and how they scored.

Nothing here starts a process.
"""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from trainer.config import load_config
from trainer.durable import replace_file
from trainer.errors import ConfigError
from trainer.stages import load_training
from trainer.study import sweep as base
from trainer.study.sweep import Scores, fixed_overrides, read_scores, refuse_taken, written

TAKEN = {"resume": "another run.name starts afresh"}
"""Keys that are not the user's to set, each with what to do instead."""

TAKEN_IN_A_CASE = TAKEN | {
    "seed": "--seeds; the first one is the configuration's or that of an override for all",
    "run.name": "the case's name names its runs",
    "run.dir": "as an override for all it moves the study",
    "tracking.uri": "as an override for all it moves the study",
    "tracking.experiment": "as an override for all it moves the study",
    "tracking.parent": "the study has one parent",
}

SCORES = ("top1", "best_top1", "loss", "seconds")
"""What is compared, as `Scores` names it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Case:
    """A name and the overrides that it stands for; there may be none."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Point(base.Point):
    """One training, with the name of its case."""

    case: str


@dataclass(frozen=True)
class Sweep(base.Sweep[Point]):
    """All trainings of a study, a case and a seed each."""

    @property
    def runs_table(self) -> Path:
        """The numbers, a line for each training."""
        return self.directory / "runs.csv"

    @property
    def cases_table(self) -> Path:
        """Mean and standard deviation, a line for each case."""
        return self.directory / "cases.csv"


@dataclass(frozen=True)
class Reading:
    """What one training came to."""

    point: Point
    scores: Scores


def parse_case(text: str) -> Case:
    """`NAME: key=value key=value`, cut as a shell cuts words.

    Raises:
        ConfigError: it is not of that form.
    """
    name, colon, rest = text.partition(":")
    try:
        overrides = shlex.split(rest)
    except ValueError:
        overrides = ["a quote that is not closed"]
    if not colon or not _NAME.fullmatch(name.strip()) or not all("=" in override for override in overrides):
        raise ConfigError(
            f"--case {text!r}: write 'NAME: key=value key=value', e.g. --case 'steep: estimator.o_end=5'; "
            "a name has letters, digits and . _ -, a value with blanks needs quotes of its own"
        )
    return Case(name.strip(), tuple(overrides))


def plan_cases(path: Path, overrides: list[str], cases: Sequence[Case], seeds: int, out: Path | None) -> Sweep:
    """The trainings of every case with every seed; seeds count up from the configuration's.

    Args:
        path: a configuration file.
        overrides: `key=value`, for all trainings; a case's own win.
        cases: at least one.
        seeds: trainings for each of them.
        out: the study's folder; None: `NAME-study` in `run.dir`.

    Raises:
        ConfigError: the configuration of a case is wrong, or sets what is the study's to set.
    """
    names = [case.name for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two cases are named {twice}: give each its own name")
    config = load_config(path, overrides)
    refuse_taken(overrides, TAKEN)
    directory = out or Path(config.run.dir) / f"{config.run.name}-study"
    points = []
    for case in cases:
        refuse_taken(case.overrides, TAKEN_IN_A_CASE)
        for seed in range(config.seed, config.seed + seeds):
            name = f"{case.name}-seed{seed}"
            own = written({"seed": seed, "run.name": name})
            points.append(Point(seed, name, (*case.overrides, *own), case.name))
    fixed = written(fixed_overrides(config, directory))
    sweep = Sweep(path, config, directory, tuple(overrides), tuple(points), fixed)
    for point in sweep.points[::seeds]:
        try:
            load_training(path, sweep.overrides(point))
        except ConfigError as error:
            raise ConfigError(f"case {point.case}: {error}") from None
    return sweep


def read(sweep: Sweep, point: Point) -> Reading:
    """Read a finished training.

    Raises:
        DataError: its result is damaged.
    """
    return Reading(point, read_scores(sweep.folder(point)))


def by_case(readings: Iterable[Reading]) -> dict[str, list[Reading]]:
    """Readings under their case, in the order in which cases come up."""
    groups: dict[str, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(reading.point.case, []).append(reading)
    return groups


def values(readings: Iterable[Reading], score: str) -> list[float]:
    """One of `SCORES` of every training."""
    return [getattr(reading.scores, score) for reading in readings]


def write_tables(sweep: Sweep, readings: Sequence[Reading]) -> None:
    """Write both tables as CSV; a standard deviation (that of a sample) of one training is left empty."""
    runs = [[r.point.case, r.point.seed, *(getattr(r.scores, s) for s in SCORES), r.point.name] for r in readings]
    _write(sweep.runs_table, [["case", "seed", *SCORES, "run"], *runs])
    cases: list[list[object]] = [["case", "n", *(f"{score}_{part}" for score in SCORES for part in ("mean", "sd"))]]
    for case, group in by_case(readings).items():
        columns = [values(group, score) for score in SCORES]
        parts = [part for column in columns for part in (fmean(column), stdev(column) if len(column) > 1 else "")]
        cases.append([case, len(group), *parts])
    _write(sweep.cases_table, cases)


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    replace_file(path, text.getvalue().encode())
