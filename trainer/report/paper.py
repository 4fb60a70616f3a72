"""One picture: its paper, its margins, and how it leaves the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trainer.report.ink import STYLE, run_colour

WIDE, HIGH = 4.6, 2.9
"""Inches of a panel."""


@dataclass(frozen=True)
class Picture:
    """One drawing.

    Attributes:
        name: of its file and its ids.
        title: above it.
        caption: how to read it.
        figure: the drawing, in the light colours.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def panel_figure(high: float = HIGH, *, left: float = 0.66) -> tuple[Figure, Axes]:
    """A figure of one panel, its margins in inches: an automatic layout would draw everything twice."""
    figure = Figure(figsize=(WIDE, high))
    set_margins(figure, left=left)
    return figure, figure.subplots()


def set_margins(figure: Figure, *, left: float, title: float = 0.0, legend: float = 0.0) -> None:
    """Leave room around the axes for labels, in inches: `left` of them, above for a `title`, below for a `legend`."""
    wide, high = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / wide, right=1 - 0.1 / wide, bottom=(0.46 + legend) / high, top=1 - (0.2 + title) / high
    )


def row_panel(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A panel of one row for each name, the names at its left."""
    figure, axes = panel_figure(max(HIGH, 0.9 + 0.19 * len(names)), left=0.15 + 0.068 * max(map(len, names)))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Have a function draw in the report's style, whatever style matplotlib is set to."""

    def styled(*arguments: Any) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*arguments)

    return styled


def use_log_scale(axes: Axes) -> None:
    """A logarithmic scale where the positive values span more than a factor of ten."""
    values = [y for line in axes.get_lines() for y in np.asarray(line.get_ydata(), dtype=float) if math.isfinite(y)]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


@contextmanager
def entitled(picture: Picture, runs: dict[str, int]) -> Iterator[Figure]:
    """A drawing that leaves the page, with its title and the names of its runs; `runs` is label -> number."""
    figure = picture.figure
    [axes] = figure.axes
    wide, high = figure.get_size_inches()
    left, rows = wide * figure.subplotpars.left, -(-len(runs) // 2)
    with mpl.rc_context(STYLE):
        axes.set_title(picture.title, loc="left")
        handles = [Line2D([], [], color=run_colour(number)) for number in runs.values()]
        legend = figure.legend(handles, list(runs), loc="lower center", ncols=2, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
        figure.set_size_inches(wide, high + 0.3 + 0.2 * rows)
        set_margins(figure, left=left, title=0.3, legend=0.2 * rows)
        yield figure
        legend.remove()
        axes.set_title("", loc="left")
        figure.set_size_inches(wide, high)
        set_margins(figure, left=left)
