"""The screen of `reste study methods`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch.study import Screen, carry_out, count, ranks_of_runs
from trainer.study.cases import Point, Sweep, plan_cases, write_tables
from trainer.study.methods import COLUMNS, find_methods, read, rows, title, write_table
from trainer.study.methods_page import cells, write_page


def methods(
    path: Path,
    overrides: list[str],
    *,
    names: list[str],
    folder: Path,
    seeds: int,
    out: Path | None,
    nproc: int | None,
    report_only: bool,
) -> int:
    """Train what is not trained yet, then compare the methods; returns the exit code of `reste study`.

    Raises:
        UserError: the study cannot begin, or trainings failed (with the exit code of the first that did).
    """
    ranks = ranks_of_runs(nproc)
    cases = find_methods(folder, names)
    sweep = plan_cases(path, overrides, cases, seeds, out)
    titles = {case.name: title(folder / f"{case.name}.yaml") for case in cases}
    page = sweep.directory / "methods.html"
    table = page.with_suffix(".csv")
    screen = Screen[Point](
        name="methods",
        params={"seeds": seeds, "methods": ",".join(titles)},
        artifacts=(table, page, page.with_suffix(".png"), sweep.runs_table),
        describe=lambda point: describe(sweep, point),
        report=lambda finished, console: report(sweep, finished, titles, page, console),
        goes_on=True,
        trains=not report_only,
    )
    return carry_out(sweep, screen, ranks)


def describe(sweep: Sweep, point: Point) -> str:
    """A training in one line."""
    reading = read(sweep, point)
    return f"{point.name}: top-1 {reading.scores.top1:.2f} %, {reading.step_ms:.1f} ms a step"


def report(sweep: Sweep, finished: Sequence[Point], titles: dict[str, str], page: Path, console: Console) -> None:
    """Write tables, picture and page, and print a line for each method, the best first."""
    readings = [read(sweep, point) for point in finished]
    write_tables(sweep, readings)
    found = rows(readings)
    write_table(found, page.with_suffix(".csv"))
    config = sweep.config
    heading = f"{config.run.name}: methods on {Path(config.data.root).name}, {config.train.epochs} epochs"
    write_page(found, readings, titles, heading=heading, page=page)
    table = Table("method", "n", *COLUMNS.values())
    for row in found:
        table.add_row(row.method, str(row.runs), *cells(row))
    console.print(table)
    absent = [point.name for point in sweep.points if point not in finished]
    if absent:
        console.print(f"not finished: {count(len(absent), 'run')} ({', '.join(absent)})", markup=False)
    console.print(f"table: {page.with_suffix('.csv')}\npage: {page} (picture beside it)", markup=False)
