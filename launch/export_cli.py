"""The words of `reste export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run folder (its best checkpoint).")],
    to: Annotated[str, typer.Option("--to", help="packed (1 bit a binary weight), onnx or pt2 (torch.export).")],
    out: Annotated[
        Path | None, typer.Option(help="File, or a folder for one of the model's name; this folder by default.")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="packed: full-precision weights in 16 bit; exact only without it.")
    ] = False,
    weights: Annotated[str, typer.Option(help="auto (the moving average if there is one), model or ema.")] = "auto",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="ROOT", help="Compare on this validation split; on noise by default."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a checkpoint's network as one file for other programs; say how its logits differ from the trained one's.

    The file is read back and run on the same images as the network in eval mode on this CPU.

    Examples: `reste export runs/digits --to packed`, `reste export runs/digits --to onnx --data data/digits`.
    """
    from launch import export as view

    view.print_export(checkpoint, to, out=out, half=half, weights=weights, data=data, as_json=json)
