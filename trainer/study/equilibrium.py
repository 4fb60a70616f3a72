"""The equilibrium study: one training for each last power, and what the indicators say at the end of each.

As o_end rises, the estimating error falls and the gradient instability rises; accuracy is best somewhere between
(Wu et al., ICCV 2023). Nothing here starts a process: a sweep says which runs there are, a reading what came of them.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from reste import create_estimator
from trainer.config import Config, load_config
from trainer.errors import ConfigError, DataError
from trainer.resume import differences
from trainer.tracking.address import resolve_uri, sqlite_path
from trainer.tracking.journal import read_journal

PROBE_EVERY = "0.1ep"
"""How often the runs of a study are probed, unless the command line says otherwise."""

TAKEN = ("estimator.o_end", "resume")
"""Keys that are not the user's to set."""


@dataclass(frozen=True)
class Point:
    """One training: its last power, its seed, the folder it has in the study's, and the overrides that make it."""

    o_end: float
    seed: int
    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """All trainings of a study.

    Attributes:
        path: the configuration file that they share.
        config: what it says, with the user's overrides.
        directory: the study's folder.
        points: in the order of training.
    """

    path: Path
    config: Config
    directory: Path
    points: tuple[Point, ...]

    @property
    def uri(self) -> str:
        """MLflow's store: the one that an ordinary run of this configuration has."""
        return resolve_uri(self.config.tracking.uri, self.config.run_dir)

    @property
    def figure(self) -> Path:
        """The drawing."""
        return self.directory / "equilibrium.png"

    @property
    def table(self) -> Path:
        """The numbers, a line for each training."""
        return self.directory / "equilibrium.csv"

    def folder(self, point: Point) -> Path:
        """The run folder of a training."""
        return self.directory / point.name

    def configuration(self, point: Point) -> Config:
        """What a training is told."""
        return load_config(self.path, point.overrides)


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
    given = {override.partition("=")[0].strip() for override in overrides}
    for key in TAKEN:
        if key in given:
            raise ConfigError(f"{key} is the study's to set: leave it out (--o-end sets powers, --out starts afresh)")
    _require_binary_weights_and_power(config)
    directory = out or Path(config.run.dir) / f"{config.run.name}-equilibrium"
    common: dict[str, object] = {"resume": "auto", "run.dir": str(directory)}
    uri = resolve_uri(config.tracking.uri, config.run_dir)
    # Any other address is the same from every run's folder, and may hold a password, which all users of a machine
    # could read on a command line.
    if sqlite_path(uri) is not None:
        common["tracking.uri"] = uri
    if "log.indicators_every" not in given:
        common["log.indicators_every"] = PROBE_EVERY
    points = []
    for o_end in o_ends:
        for seed in range(config.seed, config.seed + seeds):
            name = f"o{label(o_end)}-seed{seed}"
            own = common | {"estimator.o_end": o_end, "seed": seed, "run.name": name}
            # JSON is YAML: quoted, a folder's name means itself.
            points.append(Point(o_end, seed, name, (*overrides, *(f"{k}={json.dumps(v)}" for k, v in own.items()))))
    return Sweep(path, config, directory, tuple(points))


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


def is_finished(sweep: Sweep, point: Point) -> bool:
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
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        first = result["steps"] - result["steps_per_epoch"] + 1
        final, best = result["final"], result["best"]
        scores = float(final["top1"]), float(best["top1"]), float(final["loss"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{folder / 'result.json'} is damaged: delete {folder} to train it again") from None
    probes = [totals for step, totals in _probes(folder / "journal.jsonl") if step >= first]
    if not probes:
        raise DataError(f"{folder} was not probed in its last epoch: set log.indicators_every=1ep or less")
    means = {name: fmean(probe[name] for probe in probes) for name in probes[-1]}
    return Reading(point, means, len(probes), *scores)


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
    replace(path, text.getvalue().encode())


def replace(path: Path, content: bytes) -> None:
    """Write a file that is never seen half-written."""
    stump = path.with_name(f".{path.name}.tmp")
    stump.write_bytes(content)
    stump.replace(path)
