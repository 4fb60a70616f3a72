"""Colours and paper: one figure becomes an SVG that takes its colours from the page, or a PNG that has its own.

Figures are drawn in the light colours of `LIGHT`. In the SVG each of them becomes a CSS variable, so that the page
shows the same drawing light or dark.
"""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

LIGHT = {
    "text": "#1f2430",
    "muted": "#6b7280",
    "grid": "#e4e7ec",
    "run1": "#2563c9",
    "run2": "#d1570b",
    "run3": "#0f8a65",
    "run4": "#b4308a",
    "run5": "#7a5af0",
    "run6": "#96760c",
}
"""Name -> colour on white paper; no two are alike, and nothing else may be drawn in any of them."""

DARK = {
    "text": "#e6e9ef",
    "muted": "#98a1b3",
    "grid": "#2d3442",
    "run1": "#6ea8ff",
    "run2": "#ff9a56",
    "run3": "#3ecf9e",
    "run4": "#f07fc8",
    "run5": "#a896ff",
    "run6": "#dcbb4a",
}
"""The same names on a dark page."""

RUNS = [name for name in LIGHT if name.startswith("run")]

STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["text"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.use_mathtext": False,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "text.color": LIGHT["text"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.labelcolor": LIGHT["text"],
    "svg.fonttype": "none",
    "svg.hashsalt": "reste",
}
"""matplotlib's settings for everything drawn here."""

_PLACES = re.compile(r' (?:d|x|y|transform)="[^"]*"')
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_PAINT = re.compile("|".join(LIGHT.values()))
_NAMES = {colour: name for name, colour in LIGHT.items()}


def run_colour(number: int) -> str:
    """The colour of the run with this number, from 0; they come again after the last."""
    return LIGHT[RUNS[number % len(RUNS)]]


def svg(figure: Figure, name: str) -> str:
    """An `<svg>` element without a background, for a page that defines the colours' variables.

    Args:
        figure: drawn under `STYLE`.
        name: goes before every id, since all pictures of a page share one space of them.
    """
    output = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(output, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = output.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r'\bid="([^"]*)"', rf'id="{name}-\1"', text)
    text = text.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    text = _PLACES.sub(lambda place: _NUMBER.sub(_shorter, place[0]), text)
    return _PAINT.sub(lambda colour: f"var(--{_NAMES[colour[0]]})", text)


def _shorter(number: re.Match[str]) -> str:
    """A hundredth of a point is finer than any screen."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def png(figure: Figure) -> bytes:
    """A PNG on white paper, 160 dots an inch."""
    output = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(output, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return output.getvalue()
