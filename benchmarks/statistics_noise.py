"""How far the accuracy of one and the same network moves with the batches that its running statistics come from.

Takes a finished run, leaves every weight as it is, and lets batch norm see further epochs of training images (other
order, crops and flips than in training). After each epoch it evaluates, as training does. What differs between these
evaluations is no progress and no collapse: it is the noise floor under every "best minus last" of such a run.

    python benchmarks/statistics_noise.py runs/NAME... --record benchmarks/records/statistics_noise.json
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from studies import about, spread, write_record

from trainer import checkpoint, checkpoints
from trainer.config import Config, load_config
from trainer.data import datasets
from trainer.data.order import EvalOrder, TrainOrder
from trainer.distributed.environment import Environment
from trainer.network import create_network, load_weights
from trainer.pixels import Pixels

DEVICE = torch.device("cpu")
OTHER_SEED = 1_000_003
"""Added to the run's seed: images as training would draw them, but has not."""


def batches(config: Config, order: TrainOrder | EvalOrder, first: int, stop: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Images and labels of batches `first` to `stop - 1` of an order, as the network sees them."""
    pixels = Pixels.of(config, DEVICE)
    loader = datasets.create_loader(config, order, Environment(), DEVICE)
    plans = order.plans(first, stop) if isinstance(order, TrainOrder) else order.plans()
    try:
        for batch in loader.load(plans):
            yield pixels(batch)
    finally:
        loader.close()


def evaluations(run: Path, epochs: int) -> list[float]:
    """Top-1 in percent after each epoch of further statistics, weights untouched."""
    folder = checkpoints.steps(run / "checkpoints")[-1]
    config = load_config(folder / "config.yaml")
    data = datasets.open_datasets(config)
    network = create_network(config, data.classes, DEVICE)
    load_weights(network, checkpoint.load_payload(folder, "model"), folder)
    augment = datasets.augment(config)
    size = config.train.batch_size
    order = TrainOrder(
        data.train,
        augment,
        seed=config.seed + OTHER_SEED,
        batch_size=size,
        accumulation=1,
        rank=0,
        world=1,
        drop_last=config.train.drop_last,
    )
    validation = EvalOrder(data.val, augment, batch_size=config.eval.batch_size or size)
    found = []
    for epoch in range(epochs):
        network.train()
        for images, _ in batches(config, order, epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
            network(images)
        network.eval()
        hits = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches(config, validation, 0, 0))
        found.append(100 * hits / len(data.val))
    return found


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of further statistics.")] = 8,
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Measure the spread of one network's accuracy over the batches of its running statistics."""
    torch.set_num_threads(1)
    rows = []
    table = Table("run", "mean top-1", "standard deviation", "highest minus last")
    with torch.no_grad():
        for run in runs:
            top1 = evaluations(run, epochs)
            noise, above = spread(top1), round(max(top1) - top1[-1], 2)
            rows.append({"run": run.name, "top1": noise, "highest_minus_last": above})
            table.add_row(run.name, f"{noise['mean']:.2f}", f"{noise['std']:.2f}", f"{above:.2f}")
    Console().print(table)
    if record is not None:
        what = "top-1 in percent of unchanged weights, running statistics taken from other training batches each time"
        write_record(record, {"what": what, **about(runs[0].parent, runs[0].name), "epochs": epochs, "rows": rows})


if __name__ == "__main__":
    typer.run(main)
