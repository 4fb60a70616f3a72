"""How many predictions change between the best and the last checkpoint of a run, and how little has changed in it.

Two evaluations of one run differ by chance as well as by progress, and the more, the more predictions change between
them. For each run: the binary weights whose sign is another at the end, the predictions that are, and the predictions
that change when the best checkpoint is merely given the last one's running statistics.

    python benchmarks/churn.py runs/NAME... --record benchmarks/records/churn.json
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from statistics_noise import DEVICE, batches
from studies import about, write_record

from reste import binary_layers
from trainer import checkpoint, checkpoints
from trainer.config import load_config
from trainer.data import datasets
from trainer.data.order import EvalOrder
from trainer.network import create_network, load_weights

Weights = dict[str, torch.Tensor]


def percent(differs: torch.Tensor) -> float:
    """Share of true values."""
    return round(100 * differs.double().mean().item(), 3)


def compare(run: Path) -> dict[str, Any]:
    """One row: what differs between the best and the last checkpoint of a run."""
    folders = {"best": checkpoints.resolve(run), "last": checkpoints.steps(run / "checkpoints")[-1]}
    config = load_config(run / "config.yaml")
    data = datasets.open_datasets(config)
    validation = EvalOrder(data.val, datasets.augment(config), batch_size=config.eval.batch_size or 256)
    shown = list(batches(config, validation, 0, 0))
    labels = torch.cat([y for _, y in shown])
    weights = {name: checkpoint.load_payload(folder, "model") for name, folder in folders.items()}
    mixed = {name: weights["last" if ".running_" in name else "best"][name] for name in weights["best"]}

    def predictions(of: Weights) -> torch.Tensor:
        network = create_network(config, data.classes, DEVICE).eval()
        load_weights(network, of, run)
        return torch.cat([network(images).argmax(1) for images, _ in shown])

    best, last, moved = map(predictions, (weights["best"], weights["last"], mixed))
    names = [f"{name}.weight" for name, _ in binary_layers(create_network(config, data.classes, DEVICE))]
    flips = torch.cat([((weights["best"][name] >= 0) != (weights["last"][name] >= 0)).flatten() for name in names])
    changed = percent(best != last)
    return {
        "run": run.name,
        "steps": [checkpoint.step_of(folder) for folder in folders.values()],
        "top1": [percent(best == labels), percent(last == labels)],
        "signs_flipped": percent(flips),
        "predictions_changed": changed,
        "predictions_changed_by_statistics": percent(best != moved),
        # Were each change as likely right as wrong, their sum would have this standard deviation.
        "top1_by_chance": round(math.sqrt(100 * changed / len(labels)), 2),
    }


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Compare the best and the last checkpoint of each run, prediction by prediction."""
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = [compare(run) for run in runs]
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if record is not None:
        what = "what differs between the best and the last checkpoint, in percent; top1_by_chance in points"
        write_record(record, {"what": what, **about(runs[0].parent, runs[0].name), "rows": rows})


if __name__ == "__main__":
    typer.run(main)
