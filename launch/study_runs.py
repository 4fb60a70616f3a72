"""The screen of `reste study runs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.study import Screen, carry_out, count, ranks_of_runs, spread
from trainer.study.cases import Point, Sweep, by_case, parse_case, plan_cases, read, values, write_tables


def runs(
    path: Path,
    overrides: list[str],
    *,
    cases: list[str],
    seeds: int,
    out: Path | None,
    nproc: int | None,
    report_only: bool,
) -> int:
    """Train what is not trained yet, then compare the cases; returns the exit code of `reste study`.

    Raises:
        UserError: the study cannot begin, or trainings failed (with the exit code of the first that did).
    """
    ranks = ranks_of_runs(nproc)
    sweep = plan_cases(path, overrides, [parse_case(case) for case in cases], seeds, out)
    named = dict(zip((parse_case(case).name for case in cases), cases, strict=True))
    screen = Screen[Point](
        name="runs",
        params={"seeds": seeds, "cases": {name: case.partition(":")[2].strip() for name, case in named.items()}},
        artifacts=(sweep.cases_table, sweep.runs_table),
        describe=lambda point: describe(sweep, point),
        report=lambda finished, console: report(sweep, finished, console),
        goes_on=True,
        trains=not report_only,
    )
    return carry_out(sweep, screen, ranks)


def describe(sweep: Sweep, point: Point) -> str:
    """A training in one line."""
    scores = read(sweep, point).scores
    return f"{point.name}: top-1 {scores.top1:.2f} %, best {scores.best_top1:.2f} %, loss {scores.loss:.4f}"


def report(sweep: Sweep, finished: Sequence[Point], console: Console) -> None:
    """Write both tables and print one line for each case that has a finished run."""
    readings = [read(sweep, point) for point in finished]
    write_tables(sweep, readings)
    table = Table("case", "n", "top-1 %", "best top-1 %", "loss", "seconds")
    for case, group in by_case(readings).items():
        forms = {"top1": ".2f", "best_top1": ".2f", "loss": ".4f", "seconds": ".1f"}
        table.add_row(case, str(len(group)), *(spread(values(group, score), form) for score, form in forms.items()))
    console.print(table)
    absent = [point.name for point in sweep.points if point not in finished]
    if absent:
        console.print(f"not finished: {count(len(absent), 'run')} ({', '.join(absent)})", markup=False)
    console.print(f"cases: {sweep.cases_table}\nruns: {sweep.runs_table}", markup=False)
