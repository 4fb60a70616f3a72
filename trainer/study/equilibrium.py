"""The equilibrium study: one training for each last power, and what the indicators say at the end of each.

As o_end rises, the estimating error falls and the gradient instability rises; accuracy is best somewhere between
(Wu et al., ICCV 2023). Nothing here starts a process: a sweep says which runs there are, a reading what came of them.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from reste import create_estimator
from trainer.config import Config, load_config
from trainer.durable import replace_file
from trainer.errors import ConfigError, DataError
from trainer.study import sweep as base
from trainer.study.sweep import fixed_overrides, keys_of, read_scores, refuse_taken, written
from trainer.tracking.journal import read_journal

PROBE_EVERY = "0.1ep"
"""How often the runs of a study are probed, unless the command line says otherwise."""

TAKEN = {"estimator.o_end": "--o-end sets powers", "resume": "--out starts afresh"}
"""Keys that are not the user's to set, each with what to do instead."""


@dataclass(frozen=True)
class Point(base.Point):
    """One training, with its last power."""

    o_end: float


@dataclass(frozen=True)
class Sweep(base.Sweep[Point]):
    """All trainings of a study, a last power and a seed each."""

    @property
    def figure(self) -> Path:
        """The drawing."""
        return self.directory / "equilibrium.png"

    @property
    def table(self) -> Path:
        """The numbers, a line for each training."""
        return self.directory / "equilibrium.csv"


def parse_powers(text: str) -> list[float]:
    """`1,1.5,3` as numbers.

    Raises:
        ConfigError: one is no number of at least 1, or is there twice.
    """
    try:
        powers = [float(part) for part in text.split(",")]
    except ValueError:
        powers = []
    if not powers or not all(1 <= power < float("inf") for power in powers) or len(set(powers)) < len(powers):
        raise ConfigError(f"--o-end {text}: give different numbers of at least 1 with commas between, e.g. 1,1.5,2,3")
    return powers


def plan_sweep(path: Path, overrides: list[str], o_ends: list[float], seeds: int, out: Path | None) -> Sweep:
    """The trainings for every last power and every seed; seeds count up from the configuration's.

    Args:
        path: a configuration file.
        overrides: `key=value`, for all trainings.
        o_ends: last powers.
        seeds: trainings for each of them.
        out: the study's folder; None: `NAME-equilibrium` in `run.dir`.

    Raises:
        ConfigError: the configuration is wrong, or sets what is the study's to set.
    """
    config = load_config(path, overrides)
    refuse_taken(overrides, TAKEN)
    _require_binary_weights_and_power(config)
    directory = out or Path(config.run.dir) / f"{config.run.name}-equilibrium"
    fixed = fixed_overrides(config, directory)
    if "log.indicators_every" not in keys_of(overrides):
        fixed["log.indicators_every"] = PROBE_EVERY
    points = []
    for o_end in o_ends:
        for seed in range(config.seed, config.seed + seeds):
            name = f"o{label(o_end)}-seed{seed}"
            own = written({"estimator.o_end": o_end, "seed": seed, "run.name": name})
            points.append(Point(seed, name, own, o_end))
    return Sweep(path, config, directory, tuple(overrides), tuple(points), written(fixed))


def label(power: float) -> str:
    """A power in a name: `2`, `1.5`."""
    return str(power).removesuffix(".0")


def _require_binary_weights_and_power(config: Config) -> None:
    try:
        estimator = create_estimator(config.estimator.name)
    except ValueError as error:
        raise ConfigError(f"estimator.name: {error}") from None
    if not estimator.has_power:
        raise ConfigError(f"estimator.name={estimator.name} has no power to sweep: use estimator.name=reste")
    if config.model.weight_bits != 1:
        raise ConfigError("full-precision weights have no estimating error: use model.weight_bits=1")


@dataclass(frozen=True)
class Reading:
    """What one training came to.

    Attributes:
        point: the training.
        indicators: by name, each summed over the layers: the mean over the probes of the last epoch.
        probes: how many these were.
        top1: top-1 accuracy at the end, percent.
        best_top1: the best one on the way, percent.
        loss: validation loss at the end.
    """

    point: Point
    indicators: dict[str, float]
    probes: int
    top1: float
    best_top1: float
    loss: float


def read(sweep: Sweep, point: Point) -> Reading:
    """Read a finished training from its journal and result.

    Raises:
        DataError: the folder is damaged, or nothing was probed in the last epoch.
    """
    folder = sweep.folder(point)
    scores = read_scores(folder)
    probes = [totals for step, totals in _probes(folder / "journal.jsonl") if step >= scores.last_epoch]
    if not probes:
        raise DataError(f"{folder} was not probed in its last epoch: set log.indicators_every=1ep or less")
    # A flip rate needs a probe before: the first one of a start has none.
    means = {name: fmean(probe[name] for probe in probes if name in probe) for name in probes[-1]}
    return Reading(point, means, len(probes), scores.top1, scores.best_top1, scores.loss)


def _probes(journal: Path) -> list[tuple[int, dict[str, float]]]:
    """Sums over the layers, by step; a layer's own values have a further slash."""
    prefix, found = "indicator/", []
    for _, record in read_journal(journal):
        if record["type"] == "metrics":
            totals = {k.removeprefix(prefix): v for k, v in record["metrics"].items() if k.startswith(prefix)}
            totals = {name: value for name, value in totals.items() if "/" not in name}
            if totals:
                found.append((int(record["step"]), totals))
    return found


def write_table(readings: list[Reading], path: Path) -> None:
    """The readings as CSV, a line for each training."""
    names = list(dict.fromkeys(name for reading in readings for name in reading.indicators))
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["o_end", "seed", *names, "top1", "best_top1", "loss", "probes", "run"])
    for reading in readings:
        point, values = reading.point, [reading.indicators.get(name, "") for name in names]
        scores = (reading.top1, reading.best_top1, reading.loss, reading.probes, point.name)
        lines.writerow([label(point.o_end), point.seed, *values, *scores])
    replace_file(path, text.getvalue().encode())
