"""The drawings of what the checkpoints hold: latent weights, with knee and threshold, and signs that turned."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.report.ink import LIGHT, run_colour
from trainer.report.layers import LayerFacts, Weights
from trainer.report.paper import Picture, panel_figure, row_panel, styled


def draw(facts: LayerFacts, number: int) -> list[Picture]:
    """Histograms of the latent weights, together and by layer, and the signs that turned."""
    pictures = []
    if (weights := facts.weights) is not None:
        about = f"At step {weights.step}. {_marks(weights)}"
        pictures += [
            Picture(
                "weights", "Latent weights", f"All binary layers. {about}", _histogram(weights, run_colour(number))
            ),
            Picture(
                "weights_by_layer",
                "Latent weights by layer",
                f"Each layer at a scale of its own. {about}",
                _ridges(weights, run_colour(number)),
            ),
        ]
    if facts.flips:
        steps = ", ".join(f"{flips.before} and {flips.after}" for flips in facts.flips)
        caption = f"Binary weights whose sign differs between the kept checkpoints of steps {steps}."
        caption += " The last pair is the strongest." if len(facts.flips) > 1 else ""
        pictures.append(Picture("flips", "Turned signs by layer", caption, _flips(facts, run_colour(number))))
    return pictures


def _marks(weights: Weights) -> str:
    told = []
    if weights.knee is not None:
        told.append(f"Left of the knee, {weights.knee:g}, the slope is that of a chord.")
    if weights.threshold is not None:
        told.append(f"Right of the threshold, {weights.threshold:g}, it is zero.")
    return " ".join(told)


@styled
def _histogram(weights: Weights, colour: str) -> Figure:
    figure, axes = panel_figure()
    axes.stairs(100 * weights.total, weights.edges, fill=True, color=colour, alpha=0.35, linewidth=0)
    axes.stairs(100 * weights.total, weights.edges, color=colour, linewidth=1.2)
    axes.set(xscale="log", xlabel="|latent weight|", ylabel="% of weights")
    axes.set_ylim(0, 116 * weights.total.max())
    _draw_marks(axes, weights)
    _crop(axes, weights)
    return figure


@styled
def _ridges(weights: Weights, colour: str) -> Figure:
    names = list(weights.shares)
    figure, axes = row_panel(names)
    middles = np.sqrt(weights.edges[:-1] * weights.edges[1:])
    for row, name in enumerate(names):
        heights = weights.shares[name] / weights.shares[name].max()
        seen = heights > 0
        first, last = seen.argmax(), len(seen) - seen[::-1].argmax()
        part = slice(max(first - 1, 0), last + 1)
        top = row - 1.3 * heights[part]
        axes.fill_between(middles[part], row, top, color=colour, alpha=0.35, linewidth=0, zorder=row + 2)
        axes.plot(middles[part], top, color=colour, linewidth=1, zorder=row + 2)
    axes.set(xscale="log", xlabel="|latent weight|", ylim=(len(names) - 0.5, -2.4))
    _draw_marks(axes, weights)
    _crop(axes, weights)
    return figure


@styled
def _flips(facts: LayerFacts, colour: str) -> Figure:
    names = list(facts.flips[0].shares)
    figure, axes = row_panel(names)
    rows = np.arange(len(names))
    for number, flips in enumerate(facts.flips):
        thick = 0.8 / len(facts.flips)
        alpha = 0.3 + 0.7 * (number + 1) / len(facts.flips)
        shares = [flips.shares[name] for name in names]
        axes.barh(rows - 0.4 + thick * (number + 0.5), shares, 0.85 * thick, color=colour, alpha=alpha)
    axes.set(xlabel="% of signs", ylim=(len(names) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    return figure


def _draw_marks(axes: Axes, weights: Weights) -> None:
    """Knee and threshold as lines with their names."""
    for name, value in (("knee", weights.knee), ("threshold", weights.threshold)):
        if value is not None:
            axes.axvline(value, color=LIGHT["text"], linewidth=1, linestyle=(0, (4, 2)), zorder=99)
            axes.annotate(
                name,
                (value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-3, -2),
                textcoords="offset points",
                ha="right",
                va="top",
                fontsize=8,
                color=LIGHT["text"],
                zorder=99,
            )


def _crop(axes: Axes, weights: Weights) -> None:
    """Show what holds weights, and both marks."""
    seen = np.flatnonzero(weights.total > 1e-3)
    marks = [mark for mark in (weights.knee, weights.threshold) if mark is not None]
    low = min([weights.edges[seen[0]], *(mark / 3 for mark in marks)])
    axes.set_xlim(low, max([weights.edges[seen[-1] + 1], *(mark * 1.6 for mark in marks)]))
