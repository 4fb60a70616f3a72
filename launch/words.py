"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, e.g. `train.epochs=10 optim.lr=0.05`.", show_default=False
    ),
]
Nproc = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Ranks to start on this machine; all GPUs by default, one process on a CPU."),
]
Uri = Annotated[str | None, typer.Option("--uri", help="MLflow store; see docs/registry.md for the default.")]
