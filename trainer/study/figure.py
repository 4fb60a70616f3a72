"""Figures of studies: the paper's error against instability over the last power, and descents of the toy network."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.durable import replace_file
from trainer.study.equilibrium import Reading
from trainer.study.toy import SLOPES, STARTS, Descent

ERROR, INSTABILITY, TOP1 = "#2171b5", "#d55e00", "#222222"
SLOPE_LOOKS = dict(zip(SLOPES, (("#2171b5", "-"), ("#2ca02c", "--"), ("#d55e00", "-")), strict=True))
Value = Callable[[Reading], float]


def error(reading: Reading) -> float:
    """Published estimating error."""
    return reading.indicators["estimating_error"]


def instability(reading: Reading) -> float:
    """Gradient instability."""
    return reading.indicators["gradient_instability"]


def by_power(readings: Sequence[Reading]) -> dict[float, list[Reading]]:
    """Readings under their last power, in rising order."""
    powers = sorted({reading.point.o_end for reading in readings})
    return {power: [reading for reading in readings if reading.point.o_end == power] for power in powers}


def draw(readings: Sequence[Reading], path: Path, *, title: str) -> None:
    """Write the figure as PNG; lines join the means over seeds, dots are single trainings.

    Args:
        readings: at least one.
        path: the file to replace.
        title: above the panels.
    """
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(12, 4), layout="constrained", dpi=130)
        both, plane, accuracy = figure.subplots(1, 3)
        draw_both(both, readings)
        draw_plane(plane, readings)
        over_power(accuracy, readings, lambda reading: reading.top1, TOP1)
        accuracy.set(title="accuracy", xlabel="o_end", ylabel="top-1 at the end, %")
        accuracy.grid(color="#eeeeee")
        figure.suptitle(title, fontsize=10)
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    replace_file(path, content.getvalue())


def draw_both(axes: Axes, readings: Sequence[Reading]) -> None:
    """Error on the left scale and instability on the right one."""
    right = axes.twinx()
    over_power(axes, readings, error, ERROR)
    over_power(right, readings, instability, INSTABILITY)
    axes.set(title="the two sides", xlabel="o_end")
    axes.set_ylabel("estimating error", color=ERROR)
    right.set_ylabel("gradient instability", color=INSTABILITY)
    use_log_scale(right, [instability(reading) for reading in readings])


def draw_plane(axes: Axes, readings: Sequence[Reading]) -> None:
    """Instability against error, one dot for each last power."""
    groups = by_power(readings)
    points = [(fmean(map(error, group)), fmean(map(instability, group))) for group in groups.values()]
    axes.plot(*zip(*points, strict=True), color="#888888", linewidth=1)
    axes.scatter([error(r) for r in readings], [instability(r) for r in readings], s=14, color=TOP1, zorder=3)
    for power, point in zip(groups, points, strict=True):
        axes.annotate(f"{power:g}", point, textcoords="offset points", xytext=(5, 4))
    axes.set(title="error against instability, by o_end", xlabel="estimating error", ylabel="gradient instability")
    axes.grid(color="#eeeeee")
    use_log_scale(axes, [instability(reading) for reading in readings])


def over_power(axes: Axes, readings: Sequence[Reading], value: Value, colour: str) -> None:
    """Means over seeds as a line, trainings as dots."""
    groups = by_power(readings)
    axes.plot(list(groups), [fmean(map(value, group)) for group in groups.values()], color=colour, linewidth=1.5)
    axes.scatter([reading.point.o_end for reading in readings], list(map(value, readings)), s=14, color=colour)


def use_log_scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis where the values span more than a factor of ten."""
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")


def draw_toy(found: Sequence[Descent], path: Path) -> None:
    """Write the losses of descents over their steps as PNG, a panel for each start and a colour for each slope.

    Args:
        found: at least one for each start and slope.
        path: the file to replace.
    """
    with mpl.rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(12, 4), layout="constrained", dpi=130)
        for axes, start in zip(figure.subplots(1, len(STARTS)), STARTS, strict=True):
            for slope, (colour, style) in SLOPE_LOOKS.items():
                for place, one in enumerate(d for d in found if (d.start, d.slope) == (start, slope)):
                    label = slope if place == 0 else None
                    axes.plot(one.losses, color=colour, linestyle=style, linewidth=0.9, alpha=0.8, label=label)
            axes.set(title=f"from {start}", xlabel="step", ylabel="average loss")
            axes.set_xscale("symlog", linthresh=10)
            axes.set_ylim(bottom=0)
            axes.grid(color="#eeeeee")
        axes.legend(loc="upper right")
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    replace_file(path, content.getvalue())
