"""How far the losses of 1, 2 and 3 ranks drift apart, in float32 and in float64.

Trains the quickstart's network for a few steps on synthetic images with the real command line, once per precision and
number of ranks, and prints the largest difference of the training loss to that of one rank.

    python benchmarks/drift.py --record benchmarks/records/drift.json
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from studies import about, series, train, write_record

CONFIG = "configs/quickstart.yaml"
WORLDS = (1, 2, 3)
PRECISIONS = ("fp32", "fp64")
RANGES = ((1, 1), (2, 5), (6, 10), (11, 20))
# 343 images in batches of 48: seven full ones and one of 7 images, which 2 and 3 ranks share unevenly.
FIXED = (
    "data.loader=synthetic",
    "data.synthetic={samples: 343, classes: 10}",
    "train.compile=false",
    "log.every=1",
    "log.indicators_every=0",
    "eval.every=0",
    "checkpoint.every=0",
)
Losses = list[float]


def furthest(losses: Losses, alone: Losses, first: int, last: int) -> float | None:
    """Largest difference over steps `first` to `last`, 1-based; None if there are none."""
    pairs = list(zip(losses, alone, strict=True))[first - 1 : last]
    return max((abs(a - b) for a, b in pairs), default=None)


def measure(folder: Path, overrides: list[str]) -> dict[str, dict[int, Losses]]:
    """Losses by precision and number of ranks."""
    found: dict[str, dict[int, Losses]] = {}
    for precision in PRECISIONS:
        for world in WORLDS:
            name = f"{precision}_{world}"
            train(folder, name, CONFIG, [*overrides, f"train.precision={precision}"], ranks=world)
            found.setdefault(precision, {})[world] = series(folder, name, "train/loss")
            typer.echo(f"{precision}, {world} ranks: last loss {found[precision][world][-1]:.6f}", err=True)
    return found


def differences(found: dict[str, dict[int, Losses]]) -> list[dict[str, Any]]:
    """One row for every precision and number of ranks above one."""
    return [
        {
            "precision": precision,
            "ranks": world,
            "max_loss_difference": {
                f"{first}-{last}": far
                for first, last in RANGES
                if (far := furthest(runs[world], runs[1], first, last)) is not None
            },
        }
        for precision, runs in found.items()
        for world in WORLDS[1:]
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    columns = list(rows[0]["max_loss_difference"])
    table = Table("precision", "ranks", *(f"steps {name}" for name in columns))
    for row in rows:
        table.add_row(
            row["precision"], str(row["ranks"]), *(f"{row['max_loss_difference'][name]:.1e}" for name in columns)
        )
    Console().print("largest difference of the training loss to that of one rank")
    Console().print(table)


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps to train.")] = 20,
    image_size: Annotated[int, typer.Option(min=8, help="Pixels.")] = 32,
    batch_size: Annotated[int, typer.Option(min=2, help="Global batch size.")] = 48,
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Measure how far runs of 1, 2 and 3 ranks drift apart."""
    overrides = [
        *FIXED,
        f"train.max_steps={steps}",
        f"data.image_size={image_size}",
        f"train.batch_size={batch_size}",
    ]
    with tempfile.TemporaryDirectory(prefix="drift-") as name:
        folder = Path(name)
        found = measure(folder, overrides)
        facts = about(folder, f"{PRECISIONS[0]}_1")
    rows = differences(found)
    show(rows)
    if record is not None:
        what = "largest difference of the training loss to that of one rank, by range of steps"
        losses = {precision: {str(world): runs[world] for world in runs} for precision, runs in found.items()}
        write_record(
            record,
            {"what": what, **facts, "config": CONFIG, "overrides": overrides, "rows": rows, "losses": losses},
        )


if __name__ == "__main__":
    typer.run(main)
