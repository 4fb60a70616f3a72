"""`reste study`: the trainings of a study, what they came to, and where that is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table

from launch import local
from launch.children import Children
from launch.prepare import progress
from trainer.data.datasets import open_datasets
from trainer.errors import EXIT_BUG, EXIT_FINISHED, EXIT_STOPPED, ConfigError, UserError
from trainer.logs import speak_plainly
from trainer.study.equilibrium import (
    Point,
    Reading,
    Sweep,
    is_finished,
    label,
    parse_powers,
    plan_sweep,
    read,
    write_table,
)
from trainer.study.figure import by_power, draw, error, instability
from trainer.tracking.mlflow_sink import EndStatus
from trainer.tracking.parent import ParentRun
from trainer.tracking.status import read_status
from trainer.tracking.sync import flatten


def equilibrium(
    path: Path, overrides: list[str], *, o_end: str, seeds: int, out: Path | None, nproc: int | None
) -> int:
    """Train what is not trained yet, then write table and figure; returns the exit code of `reste study`.

    Raises:
        UserError: the study cannot begin, or one of its trainings failed (with that one's exit code).
    """
    if local.is_rank():
        raise ConfigError("a study starts the ranks of its runs: start it without torchrun or srun, with --nproc")
    ranks = local.world_size(nproc)
    speak_plainly(0)
    sweep = plan_sweep(path, overrides, parse_powers(o_end), seeds, out)
    missing = [point for point in sweep.points if not is_finished(sweep, point)]
    open_datasets(sweep.config)  # so that data that is missing or damaged leaves nothing behind
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{count(len(sweep.points), 'run')}, {len(missing)} to train; files in {sweep.directory}", markup=False
    )
    parent = create_parent(sweep, o_end, seeds) if sweep.config.tracking.enabled else None
    status: EndStatus = "FAILED"
    try:
        run_id = None if parent is None else parent.begin()
        status = train_all(sweep, missing, run_id, ranks, console)
        if status == "FINISHED":
            report(sweep, console)
    finally:
        if parent is not None:
            parent.end(status)
    return EXIT_FINISHED if status == "FINISHED" else EXIT_STOPPED


def create_parent(sweep: Sweep, o_end: str, seeds: int) -> ParentRun:
    """The MLflow run of the whole study."""
    return ParentRun(
        sweep.directory,
        uri=sweep.uri,
        experiment=sweep.config.tracking.experiment,
        params=flatten({**sweep.config.model_dump(mode="json"), "study": {"o_end": o_end, "seeds": seeds}}),
        tags={"study": "equilibrium"},
        artifacts=(sweep.table, sweep.figure),
    )


def train_all(sweep: Sweep, missing: list[Point], parent: str | None, ranks: int, console: Console) -> EndStatus:
    """Train one after the other, with the steps of all of them as progress; how the study ended."""
    children = Children()
    with progress("equilibrium, steps") as advance, children.listening():
        for done, point in enumerate(missing):
            arguments = ["train", str(sweep.path), *point.overrides, "--nproc", str(ranks)]
            if parent is not None:
                arguments.append(f'tracking.parent="{parent}"')  # quoted: an id of digits alone is text too
            log = sweep.directory / "logs" / f"{point.name}.txt"
            code = children.run(arguments, log, watch(sweep.folder(point), done, len(missing), advance))
            if children.stopped or code == EXIT_STOPPED:
                console.print("stopped on request: start the same command again to go on")
                return "KILLED"
            if code != EXIT_FINISHED:
                raise failure(point, code, log)
            console.print(describe(read(sweep, point)), markup=False)
    return "FINISHED"


def watch(folder: Path, done: int, runs: int, advance: Callable[[int, int], None]) -> Callable[[], None]:
    """A function that shows how far the run in `folder` is, with `done` of `runs` runs behind it."""
    started = time.time()

    def look() -> None:
        status = read_status(folder)
        if status is not None and status.time >= started:
            advance(done * status.total_steps + status.step, runs * status.total_steps)

    return look


def failure(point: Point, code: int, log: Path) -> UserError:
    """One line for a training that failed: its own, if it had one."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    ended = f"was killed by signal {-code}; start again to go on" if code < 0 else f"ended with exit code {code}"
    error = UserError(f"run {point.name}: {told[-1] if told else ended} (its output: {log})")
    error.exit_code = code if code > 0 else EXIT_BUG
    return error


def describe(reading: Reading) -> str:
    """A training in one line."""
    return (
        f"o_end {label(reading.point.o_end)}, seed {reading.point.seed}: top-1 {reading.top1:.2f} %, "
        f"estimating error {error(reading):.4g}, gradient instability {instability(reading):.4g}"
    )


def report(sweep: Sweep, console: Console) -> None:
    """Write the table and the figure, print the means over seeds and whether the two sides move as they should."""
    readings = [read(sweep, point) for point in sweep.points]
    write_table(readings, sweep.table)
    draw(readings, sweep.figure, title=f"{sweep.config.model.name}, {sweep.config.run.name}: last epoch of each run")
    table = Table("o_end", "runs", "estimating error", "gradient instability", "top-1 %", "best top-1 %")
    groups = by_power(readings)
    for power, group in groups.items():
        cells = [spread([value(reading) for reading in group]) for value in (error, instability)]
        scores = [spread([r.top1 for r in group], ".2f"), spread([r.best_top1 for r in group], ".2f")]
        table.add_row(label(power), str(len(group)), *cells, *scores)
    console.print(table)
    if len(groups) > 1:
        falls = all(a > b for a, b in pairwise(fmean(map(error, group)) for group in groups.values()))
        rises = all(a < b for a, b in pairwise(fmean(map(instability, group)) for group in groups.values()))
        console.print(f"with o_end the error falls: {answer(falls)}; the instability rises: {answer(rises)}")
    console.print(f"figure: {sweep.figure}\ntable: {sweep.table}", markup=False)


def spread(values: Sequence[float], form: str = ".4g") -> str:
    """Mean, and standard deviation if there are several."""
    mean = format(fmean(values), form)
    return mean if len(values) < 2 else f"{mean} +- {format(stdev(values), form)}"


def count(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def answer(whether: bool) -> str:
    """Yes or no."""
    return "yes" if whether else "no"
