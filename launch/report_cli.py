"""The words of `reste report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders; the first is the one compared with.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="The page; by default `report.html` in the run's folder, or for several `comparison.html` here.",
        ),
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="FOLDER", help="Also write every picture as PNG.")
    ] = None,
    log: Annotated[
        bool, typer.Option("--log", help="Also put the page into each run's folder and MLflow run.")
    ] = False,
) -> None:
    """One self-contained page about runs: curves, indicators, weights, speed, configuration, published numbers.

    The page works offline, light and dark, and on a phone. Runs may still be going on.

    Examples: `reste report runs/digits`, `reste report runs/a runs/b runs/c --out compare.html --png pictures`.
    """
    from launch import report as view

    view.report(runs, out=out, png=png, log=log)
