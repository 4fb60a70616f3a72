"""Draws the curve and the slope of every estimator, as the code computes them.

figures/estimators.svg has the paper's own, figures/estimators_field.svg the field's others.

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

from reste import create_estimator, set_power, set_progress

FIGURES = Path(__file__).resolve().parent / "figures"
REACH, POINTS = 2.0, 4001
JUMP = 0.2

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One estimator at one power and share of training done, and how it is drawn."""

    label: str
    name: str
    power: float
    colour: str
    style: str = "-"
    progress: float = 0.0


OWN = (
    Line("identity", "identity", 1.0, "#888888", ":"),
    Line("ste", "ste", 1.0, "#000000", "--"),
    Line("approx_sign", "approx_sign", 1.0, "#d55e00", "-."),
    Line("reste, power 1", "reste", 1.0, "#9ecae1"),
    Line("reste, power 1.5", "reste", 1.5, "#4292c6"),
    Line("reste, power 2", "reste", 2.0, "#2171b5"),
    Line("reste, power 3", "reste", 3.0, "#08306b"),
)
FIELD = (
    Line("tanh", "tanh", 1.0, "#888888", ":"),
    Line("ede, begin", "ede", 1.0, "#fdae6b"),
    Line("ede, half", "ede", 1.0, "#e6550d", progress=0.5),
    Line("ede, 80 %", "ede", 1.0, "#7f2704", progress=0.8),
    Line("fda, begin", "fda", 1.0, "#74c476", "--"),
    Line("fda, end", "fda", 1.0, "#00441b", "--", progress=1.0),
    Line("dsq", "dsq", 1.0, "#000000", "-."),
    Line("swish_sign", "swish_sign", 1.0, "#9e3d9e"),
    Line("rational, power 3", "rational", 3.0, "#2171b5"),
    Line("reste_levels, 3 levels, power 3", "reste_levels", 3.0, "#08306b"),
)


def evaluate(line: Line) -> tuple[Values, Values, Values]:
    """x, the curve at x, and the slope at x: what the backward pass of the sign multiplies a gradient of 1 with."""
    estimator = create_estimator(line.name)
    set_power(estimator, line.power)
    set_progress(estimator, line.progress)
    x = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(estimator(x).sum(), x)
    return x.detach().numpy(), estimator.curve(x).detach().numpy(), slope.numpy()


def broken(values: Values) -> Values:
    """The values with a gap at every jump, so that no line is drawn where there is no value."""
    gapped = values.copy()
    gapped[1:][np.abs(np.diff(values)) > JUMP] = np.nan
    return gapped


def draw(lines: tuple[Line, ...], curves: Axes, slopes: Axes) -> None:
    """Both panels."""
    for line in lines:
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
    slopes.set(
        title="slope g(x): what a gradient is multiplied with", xlabel="x", ylim=(-0.35 if lines is FIELD else -0.15, 5)
    )
    for axes in (curves, slopes):
        axes.set_xlim(-REACH, REACH)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
    curves.legend(fontsize=8, loc="upper left", framealpha=1)


def main() -> None:
    """Write the figures; the same code and matplotlib give the same bytes."""
    FIGURES.mkdir(exist_ok=True)
    for name, lines in {"estimators": OWN, "estimators_field": FIELD}.items():
        with mpl.rc_context({"svg.hashsalt": "estimators", "font.size": 9, "axes.titlesize": 10}):
            figure = Figure(figsize=(10, 4.2), layout="constrained")
            draw(lines, *figure.subplots(1, 2))
            figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None, "Creator": None})
        print(FIGURES / f"{name}.svg")


if __name__ == "__main__":
    main()
