"""The screen of `reste study equilibrium`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from launch.study import Screen, carry_out, ranks_of_runs, spread
from trainer.study.equilibrium import Point, Reading, Sweep, label, parse_powers, plan_sweep, read, write_table
from trainer.study.figure import by_power, draw, error, instability


def equilibrium(
    path: Path, overrides: list[str], *, o_end: str, seeds: int, out: Path | None, nproc: int | None
) -> int:
    """Train what is not trained yet, then write table and figure; returns the exit code of `reste study`.

    Raises:
        UserError: the study cannot begin, or one of its trainings failed (with that one's exit code).
    """
    ranks = ranks_of_runs(nproc)
    sweep = plan_sweep(path, overrides, parse_powers(o_end), seeds, out)
    screen = Screen[Point](
        name="equilibrium",
        params={"o_end": o_end, "seeds": seeds},
        artifacts=(sweep.table, sweep.figure),
        describe=lambda point: describe(read(sweep, point)),
        report=lambda finished, console: report(sweep, console),
    )
    return carry_out(sweep, screen, ranks)


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


def answer(whether: bool) -> str:
    """Yes or no."""
    return "yes" if whether else "no"
