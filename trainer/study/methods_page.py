"""A study of methods as a picture, and as a page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.durable import replace_file
from trainer.report.ink import DARK, LIGHT, png, svg
from trainer.report.paper import styled
from trainer.study.methods import COLUMNS, MethodReading, Row

TEMPLATE = "methods.html.j2"


@styled
def draw(table: Sequence[Row], readings: Sequence[MethodReading]) -> Figure:
    """Top-1 of every method, mean with deviation over single trainings, and error against instability."""
    figure = Figure(figsize=(11, 1.4 + 0.34 * len(table)), layout="constrained")
    accuracy, plane = figure.subplots(1, 2, width_ratios=(3, 2))
    _accuracy(accuracy, table, readings)
    _plane(plane, table)
    return figure


def _accuracy(axes: Axes, table: Sequence[Row], readings: Sequence[MethodReading]) -> None:
    for place, row in enumerate(table):
        axes.errorbar(
            row.means["top1"], place, xerr=row.deviations["top1"] or 0, fmt="o", color=LIGHT["run1"], capsize=3
        )
        singles = [reading.scores.top1 for reading in readings if reading.point.case == row.method]
        axes.plot(singles, [place] * len(singles), "|", color=LIGHT["muted"])
    axes.set_yticks(range(len(table)), [row.method for row in table])
    axes.invert_yaxis()
    axes.set(title="top-1 at the end: mean, deviation, single runs", xlabel="%")


def _plane(axes: Axes, table: Sequence[Row]) -> None:
    for row in table:
        error, instability = row.means["estimating_error"], row.means["gradient_instability"]
        axes.plot(error, instability, "o", color=LIGHT["run2"], markersize=4)
        axes.annotate(row.method, (error, instability), textcoords="offset points", xytext=(4, 3), fontsize=7.5)
    if all(row.means["gradient_instability"] > 0 for row in table):
        axes.set_yscale("log")
    axes.set(title="the two sides", xlabel="estimating error", ylabel="gradient instability")


def cells(row: Row) -> list[str]:
    """A row's numbers as they are printed."""
    return [_cell(row.means[name], row.deviations[name], name) for name in COLUMNS]


def _cell(mean: float, deviation: float | None, name: str) -> str:
    if math.isnan(mean):
        return "-"
    form = {"top1": ".2f", "best_top1": ".2f", "loss": ".3f"}.get(name, ".4g")
    return (
        format(mean, form) if deviation is None else f"{mean:{form}} ± {deviation:{'.2g' if form == '.4g' else form}}"
    )


def write_page(
    table: Sequence[Row], readings: Sequence[MethodReading], titles: Mapping[str, str], *, heading: str, page: Path
) -> None:
    """Write the page, and the picture beside it as PNG.

    Args:
        table: of `methods.rows`.
        readings: what it was made of.
        titles: a line on each method.
        heading: above all.
        page: the HTML file; the PNG has its name.
    """
    figure = draw(table, readings)
    replace_file(page.with_suffix(".png"), png(figure))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    text = environment.get_template(TEMPLATE).render(
        heading=heading,
        columns=list(COLUMNS.values()),
        rows=[(row, cells(row), titles.get(row.method, "")) for row in table],
        picture=Markup(svg(figure, "methods")),
        light=LIGHT,
        dark=DARK,
    )
    replace_file(page, text.encode())
