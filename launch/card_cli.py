"""The words of `reste card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def card(
    run: Annotated[Path, typer.Argument(help="A run folder (its best checkpoint) or a checkpoint.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to; `card` in RUN by default, if it is a run folder. Other files there stay."
        ),
    ] = None,
    licence: Annotated[
        str, typer.Option("--license", metavar="NAME", help="Licence of the weights, by the hub's name for it.")
    ] = "apache-2.0",
) -> None:
    """Model card, weights and configuration as timm and the Hugging Face hub keep them.

    README.md with numbers and recipe, model.safetensors, and config.json, from which timm makes the model again.

    Example: `reste card runs/digits --out digits-model`.
    """
    from launch import card as view

    view.card(run, out=out, licence=licence)
