"""Draws figures/estimators.svg: the curve and the slope of every estimator, as the code computes them.

python docs/draw_estimators.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reste import create_estimator, set_power

FIGURE = Path(__file__).resolve().parent / "figures" / "estimators.svg"
REACH, POINTS = 2.0, 4001
JUMP = 0.2

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One estimator at one power, and how it is drawn."""

    label: str
    name: str
    power: float
    colour: str
    style: str = "-"


LINES = (
    Line("identity", "identity", 1.0, "#888888", ":"),
    Line("ste", "ste", 1.0, "#000000", "--"),
    Line("approx_sign", "approx_sign", 1.0, "#d55e00", "-."),
    Line("reste, power 1", "reste", 1.0, "#9ecae1"),
    Line("reste, power 1.5", "reste", 1.5, "#4292c6"),
    Line("reste, power 2", "reste", 2.0, "#2171b5"),
    Line("reste, power 3", "reste", 3.0, "#08306b"),
)


def evaluate(line: Line) -> tuple[Values, Values, Values]:
    """x, the curve at x, and the slope at x: what the backward pass of the sign multiplies a gradient of 1 with."""
    estimator = create_estimator(line.name)
    set_power(estimator, line.power)
    x = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(estimator(x).sum(), x)
    return x.detach().numpy(), estimator.curve(x).detach().numpy(), slope.numpy()


def broken(values: Values) -> Values:
    """The values with a gap at every jump, so that no line is drawn where there is no value."""
    gapped = values.copy()
    gapped[1:][np.abs(np.diff(values)) > JUMP] = np.nan
    return gapped


def draw(curves: Axes, slopes: Axes) -> None:
    """Both panels."""
    for line in LINES:
        x, curve, slope = evaluate(line)
        # Where lines coincide, the dashed one lies on top and both are seen.
        look = {
            "color": line.colour,
            "linestyle": line.style,
            "linewidth": 1.6,
            "zorder": 2 if line.style == "-" else 3,
        }
        curves.plot(x, curve, label=line.label, **look)
        slopes.plot(x, broken(slope), **look)
    curves.step([-REACH, 0, REACH], [-1, -1, 1], where="pre", color="#bbbbbb", linewidth=0.8, label="sign")
    curves.set(title="curve f(x): what the backward pass believes", xlabel="x", ylim=(-2.05, 2.05))
    slopes.set(title="slope g(x): what a gradient is multiplied with", xlabel="x", ylim=(-0.15, 5))
    for axes in (curves, slopes):
        axes.set_xlim(-REACH, REACH)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
    curves.legend(fontsize=8, loc="upper left", framealpha=1)


def main() -> None:
    """Write the figure; the same code and matplotlib give the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "estimators", "font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        draw(*figure.subplots(1, 2))
        FIGURE.parent.mkdir(exist_ok=True)
        figure.savefig(FIGURE, metadata={"Date": None, "Creator": None})
    print(FIGURE)


if __name__ == "__main__":
    main()
