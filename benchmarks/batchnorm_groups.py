"""What small per-rank batches cost a binary network, and what synchronised batch norm gives back.

The same global batch of 32 digits, 8 on each of 4 ranks, with batch statistics over one rank (8 images), over pairs of
ranks (16) and over all of them (32), against one rank that holds the whole batch. Real ranks, real messages.

Accuracies of so small a task swing by more than the effect, and 4 ranks on a CPU are slow. So the same sizes
of batch are trained on one rank with more seeds: `train.accumulation=4` normalises 8 images at a time and steps on the
mean gradient of 32, as 4 unsynchronised ranks do; only the running statistics differ, which move 4 times a step there.

    python benchmarks/batchnorm_groups.py --record benchmarks/records/batchnorm.json
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from studies import about, spread, train, write_record

CONFIG = "configs/quickstart.yaml"
CASES = {
    "one rank, 8 images at a time": (1, "train.accumulation=4"),
    "one rank, 16 images at a time": (1, "train.accumulation=2"),
    "one rank, whole batch": (1, "batchnorm.sync=off"),
    "4 ranks x 8, not synchronised": (4, "batchnorm.sync=off"),
    "4 ranks x 8, groups of 2": (4, "batchnorm.sync={images: 16}"),
    "4 ranks x 8, all 4": (4, "batchnorm.sync=world"),
}
"""Name -> ranks, and which images share statistics."""
WHOLE = "one rank, whole batch"


def main(
    folder: Annotated[Path, typer.Option(help="Where the runs go; finished ones are not made again.")] = Path(
        "runs/batchnorm"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each case of 4 ranks.")] = 3,
    seeds_alone: Annotated[int, typer.Option(min=1, help="Runs of each case of one rank.")] = 10,
    jobs: Annotated[int, typer.Option(min=1, help="Runs of one rank at a time.")] = 2,
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
    found: dict[str, list[dict[str, Any]]] = {}
    for case, (ranks, setting) in CASES.items():
        with ThreadPoolExecutor(jobs if ranks == 1 else 1) as pool:
            started = [
                pool.submit(train, folder, name_of(case, seed), CONFIG, [*common, setting, f"seed={seed}"], ranks=ranks)
                for seed in range(seeds_alone if ranks == 1 else seeds)
            ]
            found[case] = [future.result() for future in started]
    rows = [row(case, found) for case in CASES]
    show(rows)
    if record is not None:
        what = f"top-1 in percent of resnet20_1w1a on the digits after {epochs} epochs, global batch 32"
        facts = about(folder, name_of(WHOLE, 0))
        write_record(record, {"what": what, **facts, "config": CONFIG, "overrides": common, "rows": rows})


def name_of(case: str, seed: int) -> str:
    """The folder of a run."""
    return f"{case.replace(',', '').replace(' ', '_')}_{seed}"


def row(case: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the runs of one case came to, and what each loses against the whole batch with the same seed."""
    runs, (ranks, setting) = found[case], CASES[case]
    lost = [whole["final"]["top1"] - run["final"]["top1"] for run, whole in zip(runs, found[WHOLE], strict=False)]
    return {
        "case": case,
        "ranks": ranks,
        "setting": setting,
        "final_top1": spread([run["final"]["top1"] for run in runs]),
        "best_top1": spread([run["best"]["top1"] for run in runs]),
        "final_loss": spread([run["final"]["loss"] for run in runs], 4),
        "lost_top1": spread(lost) | {"standard_error": round(statistics.stdev(lost) / len(lost) ** 0.5, 2)},
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table("statistics over", "runs", "final top-1", "best top-1", "validation loss", "lost, +- standard error")
    for each in rows:
        cells = (each["final_top1"], each["best_top1"], each["final_loss"])
        lost = each["lost_top1"]
        table.add_row(
            each["case"],
            str(len(each["final_top1"]["runs"])),
            *(f"{cell['mean']:.2f} +- {cell['std']:.2f}" for cell in cells),
            f"{lost['mean']:+.2f} +- {lost['standard_error']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
