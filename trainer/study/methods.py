"""A study of methods: fragments of configurations that say how a network is binarised, and what comes of each.

Every method is trained under the same data, schedule and seeds; only what its file sets differs. Nothing here starts a
process.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from reste.names import look_up
from trainer.config import flatten
from trainer.config_source import read_source
from trainer.durable import replace_file
from trainer.errors import ConfigError, DataError
from trainer.stages import begun_stages
from trainer.study.cases import Case, Point, Reading, Sweep, by_case, read as read_case
from trainer.study.sweep import written
from trainer.tracking.journal import read_journal

GROUPS = ("model", "estimator", "quantizer", "distill", "stages", "optim")
"""What a method's file may set: all else is the same for all."""

COLUMNS = {
    "top1": "top-1 %",
    "best_top1": "best top-1 %",
    "loss": "loss",
    "estimating_error": "estimating error",
    "gradient_instability": "gradient instability",
    "step_ms": "step, ms",
    "memory_mib": "memory, MiB",
    "seconds": "seconds",
}
"""What is told of a method, with its heading."""

_INDICATORS = ("estimating_error", "gradient_instability")


def find_methods(folder: Path, names: Sequence[str] = ()) -> list[Case]:
    """The methods that a folder holds, a file each, sorted; or those that are named, in that order.

    Raises:
        ConfigError: no such folder or method, or a file sets what is not a method's to set.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not files:
        raise ConfigError(f"there are no methods in {folder}: name their folder with --methods, e.g. configs/methods")
    try:
        chosen = [(name, look_up(files, name, kind="method")) for name in names] or list(files.items())
    except ValueError as error:
        raise ConfigError(f"--method: {error}") from None
    return [Case(name, _overrides(path)) for name, path in chosen]


def _overrides(path: Path) -> tuple[str, ...]:
    values = read_source(path, []).values
    foreign = sorted(values.keys() - set(GROUPS))
    if foreign:
        raise ConfigError(f"{path} sets {foreign[0]}: a method sets {', '.join(GROUPS)} and nothing else")
    return written(flatten(values))


def title(path: Path) -> str:
    """The first line of a method's file: what it is and where it comes from."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()


@dataclass(frozen=True)
class MethodReading(Reading):
    """What one training came to, with what its journal tells of its last epoch.

    Attributes:
        estimating_error, gradient_instability: sums over the layers, means over the probes; NaN where there are none.
        step_ms: median time of a step, milliseconds.
        memory_mib: the most memory that rank 0 had, MiB.
    """

    estimating_error: float
    gradient_instability: float
    step_ms: float
    memory_mib: float


def read(sweep: Sweep, point: Point) -> MethodReading:
    """Read a finished training.

    Raises:
        DataError: its result or its journal is damaged.
    """
    reading = read_case(sweep, point)
    journal = begun_stages(sweep.folder(point))[-1] / "journal.jsonl"
    last = reading.scores.last_epoch
    try:
        records = [record for _, record in read_journal(journal) if record["type"] == "metrics"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{journal} cannot be read ({error}): delete {journal.parent} to train it again") from None
    late = [record["metrics"] for record in records if int(record["step"]) >= last]
    found = {name: _values(late, f"indicator/{name}") for name in _INDICATORS}
    return MethodReading(
        point,
        reading.scores,
        **{name: fmean(values) if values else float("nan") for name, values in found.items()},
        step_ms=1000 * median(_values(late, "perf/step_time_s") or [float("nan")]),
        memory_mib=max(_values(late, "perf/peak_memory_mib"), default=float("nan")),
    )


def _values(metrics: Iterable[dict[str, float]], name: str) -> list[float]:
    return [float(each[name]) for each in metrics if name in each]


@dataclass(frozen=True)
class Row:
    """A method's numbers: how many trainings, and mean and deviation (of a sample; None of one) of each column."""

    method: str
    runs: int
    means: dict[str, float]
    deviations: dict[str, float | None]


def rows(readings: Sequence[MethodReading]) -> list[Row]:
    """A row for each method, the best mean top-1 first."""
    made = []
    for method, group in by_case(readings).items():
        columns = {name: [_of(reading, name) for reading in group] for name in COLUMNS}
        made.append(
            Row(
                method,
                len(group),
                {name: fmean(values) for name, values in columns.items()},
                {name: _deviation(values) for name, values in columns.items()},
            )
        )
    return sorted(made, key=lambda row: -row.means["top1"])


def _deviation(values: list[float]) -> float | None:
    # What one training does not tell, NaN, has no deviation either.
    return stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else None


def _of(reading: Reading, name: str) -> float:
    return getattr(reading if hasattr(reading, name) else reading.scores, name)


def write_table(table: Sequence[Row], path: Path) -> None:
    """The rows as CSV."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["method", "n", *(f"{name}_{part}" for name in COLUMNS for part in ("mean", "sd"))])
    for row in table:
        pairs = [(row.means[name], row.deviations[name]) for name in COLUMNS]
        lines.writerow([row.method, row.runs, *("" if part is None else part for pair in pairs for part in pair)])
    replace_file(path, text.getvalue().encode())
