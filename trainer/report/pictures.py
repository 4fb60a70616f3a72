"""The drawings of what the journals hold. Each is one panel, small enough for a phone, and stands beside others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from trainer.report.ink import run_colour
from trainer.report.panels import BY_LAYER, ERROR_NOW, INSTABILITY, Panel
from trainer.report.paper import Picture, panel_figure, styled, use_log_scale
from trainer.report.reading import RunReading, Series

POINTS = 400
LAYER_POINTS = 120
"""Most points of a line, and of a line of one layer; longer courses are means over equal numbers of values."""


def shorten(series: Series, most: int) -> tuple[list[float], list[float]]:
    """At most `most` points: means of steps and values over equal stretches; what is not finite leaves a gap."""
    steps, values = (np.asarray(part, dtype=np.float64) for part in series)
    values = np.where(np.isfinite(values), values, np.nan)
    if len(steps) > most:
        parts = np.array_split(np.arange(len(steps)), most)
        steps = np.array([steps[part].mean() for part in parts])
        values = np.array([values[part].mean() for part in parts])
    return steps.tolist(), values.tolist()


def courses(panels: Sequence[Panel], runs: Sequence[RunReading]) -> list[Picture]:
    """A picture of every panel that some run has a metric for."""
    return [
        Picture(panel.name, panel.title, panel.caption, _course(panel, runs))
        for panel in panels
        if any(run.course(line.metric)[0] for run in runs for line in panel.lines)
    ]


def balance(runs: Sequence[RunReading]) -> list[Picture]:
    """Instability against error, the course of each run as a line; nothing if no run has indicators."""
    if not any(run.course(ERROR_NOW)[0] for run in runs):
        return []
    caption = (
        "Gradient instability over estimating error, by the curve of the moment. The dot is where a run stands last."
    )
    return [Picture("balance", "One side against the other", caption, _balance(runs))]


def by_layer(run: RunReading, number: int) -> list[Picture]:
    """The indicators of one run, a line for each layer, the deeper the stronger."""
    pictures = []
    for indicator, title, caption in BY_LAYER:
        layers = run.layers(indicator)
        if layers:
            caption = f"{caption} Pale: {layers[0]}, the first. Strong: {layers[-1]}, the last."
            figure = _by_layer(run, indicator, layers, run_colour(number))
            pictures.append(Picture(f"{indicator}_by_layer", title, caption, figure))
    return pictures


@styled
def _course(panel: Panel, runs: Sequence[RunReading]) -> Figure:
    figure, axes = panel_figure()
    for number, run in enumerate(runs):
        for line in panel.lines:
            steps, values = shorten(run.course(line.metric), POINTS)
            values = [value * line.scale for value in values]
            marker = "o" if len(steps) == 1 else ""
            axes.plot(
                steps,
                values,
                line.style,
                marker=marker,
                markersize=3,
                color=run_colour(number),
                linewidth=line.width,
                alpha=line.alpha,
            )
    axes.set(xlabel="step", ylabel=panel.unit)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    if panel.log:
        use_log_scale(axes)
    return figure


@styled
def _balance(runs: Sequence[RunReading]) -> Figure:
    figure, axes = panel_figure()
    for number, run in enumerate(runs):
        _, errors = shorten(run.course(ERROR_NOW), LAYER_POINTS)
        _, instabilities = shorten(run.course(INSTABILITY), LAYER_POINTS)
        axes.plot(errors, instabilities, color=run_colour(number), linewidth=1.1, alpha=0.6)
        axes.plot(errors[-1:], instabilities[-1:], "o", color=run_colour(number), markersize=5)
    axes.set(xlabel="estimating error", ylabel="gradient instability")
    use_log_scale(axes)
    return figure


@styled
def _by_layer(run: RunReading, indicator: str, layers: list[str], colour: str) -> Figure:
    figure, axes = panel_figure()
    for depth, layer in enumerate(layers):
        steps, values = shorten(run.course(f"indicator/{indicator}/{layer}"), LAYER_POINTS)
        alpha = 0.2 + 0.8 * depth / max(len(layers) - 1, 1)
        axes.plot(steps, values, marker="o" if len(steps) == 1 else "", color=colour, linewidth=1.1, alpha=alpha)
    axes.set(xlabel="step")
    use_log_scale(axes)
    return figure
