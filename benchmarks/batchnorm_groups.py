"""What small per-rank batches cost a binary network, and what synchronised batch norm gives back.

The same global batch of 32 digits, 8 on each of 4 ranks, with batch statistics over one rank (8 images), over pairs of
ranks (16) and over all of them (32), against one rank that holds the whole batch. Real ranks, real messages.

    python benchmarks/batchnorm_groups.py --folder runs/batchnorm --record benchmarks/records/batchnorm.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from studies import about, spread, train, write_record

CONFIG = "configs/quickstart.yaml"
CASES = {
    "one rank, whole batch": (1, "batchnorm.sync=off"),
    "4 ranks x 8, not synchronised": (4, "batchnorm.sync=off"),
    "4 ranks x 8, groups of 2": (4, "batchnorm.sync={images: 16}"),
    "4 ranks x 8, all 4": (4, "batchnorm.sync=world"),
}
"""Name -> ranks, and which of them share statistics."""


def main(
    folder: Annotated[Path, typer.Option(help="Where the runs go; finished ones are not made again.")] = Path(
        "runs/batchnorm"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 3,
    epochs: Annotated[int, typer.Option(min=2, help="Length of a run.")] = 8,
    data: Annotated[str, typer.Option(help="The digits, from `reste prepare digits`.")] = "data/digits",
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Train every case with every seed and compare final accuracies."""
    common = [
        f"data.root={data}",
        "data.loader=torchvision",
        "train.batch_size=32",
        "train.drop_last=true",  # two images over four ranks would leave one without
        f"train.epochs={epochs}",
        "optim.lr=0.05",
        "optim.warmup=1ep",
        "log.indicators_every=0",
        f"checkpoint.every={epochs}ep",
    ]
    rows = []
    for case, (ranks, sync) in CASES.items():
        names = [f"{case.replace(',', '').replace(' ', '_')}_{seed}" for seed in range(seeds)]
        found = [
            train(folder, name, CONFIG, [*common, sync, f"seed={seed}"], ranks=ranks) for seed, name in enumerate(names)
        ]
        rows.append(
            {
                "case": case,
                "ranks": ranks,
                "setting": sync,
                "final_top1": spread([run["final"]["top1"] for run in found]),
                "best_top1": spread([run["best"]["top1"] for run in found]),
                "final_loss": spread([run["final"]["loss"] for run in found]),
            }
        )
    table = Table("statistics over", "final top-1", "best top-1", "validation loss")
    for row in rows:
        cells = (row["final_top1"], row["best_top1"], row["final_loss"])
        table.add_row(row["case"], *(f"{cell['mean']:.2f} +- {cell['std']:.2f}" for cell in cells))
    Console().print(table)
    if record is not None:
        what = f"top-1 in percent of resnet20_1w1a on the digits after {epochs} epochs, global batch 32, {seeds} seeds"
        write_record(
            record, {"what": what, **about(folder, names[0]), "config": CONFIG, "overrides": common, "rows": rows}
        )


if __name__ == "__main__":
    typer.run(main)
