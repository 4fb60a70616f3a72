"""The words of `reste register` and `reste promote`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.words import Uri


def register(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder (its best checkpoint).")],
    name: Annotated[str, typer.Option("--name", help="Registered name, e.g. digits.")],
    uri: Uri = None,
    weights: Annotated[str, typer.Option(help="auto (the moving average if there is one), model or ema.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a checkpoint a version of a name in MLflow's registry: graph, labels, preprocessing, origin, metrics.

    Its graph needs torch alone, and no unpickling of objects. Repeated, it finds the version that it made.

    Example: `reste register runs/digits --name digits`.
    """
    from launch import registry

    registry.register(checkpoint, name, uri=uri, weights=weights, as_json=json)


def promote(
    name: Annotated[str, typer.Argument(help="Registered name.")],
    version: Annotated[int, typer.Argument(min=1, help="Number of the version.")],
    alias: Annotated[str, typer.Option("--alias", help="What to call it, e.g. champion.")],
    if_better: Annotated[
        str | None, typer.Option("--if-better", help="top1, top5 or loss: only if better on the same data.")
    ] = None,
    uri: Uri = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let an alias name a version, in one step; or refuse, and leave it where it was (exit 2).

    Example: `reste promote digits 2 --alias champion --if-better top1`.
    """
    from launch import registry

    registry.promote(name, version, alias, if_better=if_better, uri=uri, as_json=json)
