"""The words of `reste bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import ConfigError


def bench(
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ROW]...",
            help="estimator, layer, step, memory, int8, weights, loader, loop, trainer, input, indicators, "
            "scaling, buckets; all by default.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="ROOT", help="With `loader`: search the best settings for this prepared data set."
        ),
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Measured rounds; 7, or 3 with --data.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: to see that it runs.")] = False,
    processor: Annotated[
        bool, typer.Option("--processor", help="Processors' time, for machines that others use too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; `benchmarks/records/DATE_HARDWARE` by default.")
    ] = None,
) -> None:
    """Speed and memory of this machine as ratios of two things measured side by side, with their spread.

    `reste bench loader --data ROOT` tries numbers of threads, depths of prefetching and, on a GPU, shares of its
    decoder unit, and writes the best into this user's site file, which every later run here reads beneath its
    configuration.

    Examples: `reste bench`, `reste bench estimator step --repeats 9`, `reste bench loader --data /data/imagenet`.
    """
    if data is not None and rows != ["loader"]:
        raise ConfigError("--data is for the search of loader settings: write reste bench loader --data ROOT")
    from launch import bench as view

    if data is not None:
        view.sweep(data, repeats=repeats or 3, seconds=0.1 if quick else 4.0, out=out, keep=not quick)
        return
    view.run(rows or [], repeats=repeats or 7, quick=quick, processor=processor, out=out)
