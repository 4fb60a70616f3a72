"""Why short trainings collapse late: how gradients grow, and what is left of their direction, as the power rises.

Takes the network of a finished run and nothing but its gradients on training batches, at several powers, for the
published and the normalised slope. For the first convolution, which every gradient has to reach through all signs of
activations (the slope of a weight's sign multiplies the gradient of that weight and is not handed on):

- growth: the gradient's norm, relative to power 1;
- agreement: the mean cosine between the gradients of two batches. Noise is what two batches do not share.

    python benchmarks/gradient_growth.py runs/NAME --record benchmarks/records/gradient_growth.json
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from studies import about, write_record

from reste import Estimator, binary_layers
from trainer import checkpoint, checkpoints
from trainer.config import load_config
from trainer.data import datasets
from trainer.data.order import EvalOrder
from trainer.distributed.environment import Environment
from trainer.network import create_network, load_weights
from trainer.pixels import Pixels

POWERS = (1.0, 1.5, 2.0, 2.5, 3.0)
CASES = {"published slope": False, "normalised slope": True}
"""Name -> `normalize`."""

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def checkpoint_of(run: Path, *, best: bool) -> Path:
    """Where a run was at its best, or where it has ended."""
    return checkpoints.resolve(run) if best else checkpoints.steps(run / "checkpoints")[-1]


def load(folder: Path, batches: int, batch_size: int) -> tuple[torch.nn.Module, Batches]:
    """A checkpoint's network in float64, and training batches drawn evenly from the whole split."""
    config = load_config(
        folder / "config.yaml", ["train.precision=fp64", "model.numerics=default", "estimator.normalize=true"]
    )
    data = datasets.open_datasets(config)
    device = torch.device("cpu")
    network = create_network(config, data.classes, device)
    weights = checkpoint.load_payload(folder, "model")
    load_weights(network, {name: w.double() if w.is_floating_point() else w for name, w in weights.items()}, folder)
    order = EvalOrder(data.train, datasets.augment(config), batch_size=len(data.train))
    loader = datasets.create_loader(config, order, Environment(), device)
    pixels = Pixels.of(config, device)
    (images, labels), *_ = (pixels(batch) for batch in loader.load(order.plans()))
    loader.close()
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(batch_size)[:batches]
    return network, [(images[ids], labels[ids]) for ids in chosen]


def configure(network: torch.nn.Module, power: float, *, normalize: bool) -> None:
    """Put every estimator at the power, with the chosen slope."""
    for _, layer in binary_layers(network):
        for estimator in (layer.weight_estimator, layer.activation_estimator):
            assert isinstance(estimator, Estimator)
            estimator.normalize = normalize
            estimator.write_power(power)


def gradients(network: torch.nn.Module, batches: Batches) -> list[torch.Tensor]:
    """The first convolution's gradient on every batch, as vectors."""
    found = []
    for images, labels in batches:
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        found.append(network.conv1.weight.grad.flatten().clone())
    return found


def main(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run of a binary network.")],
    best: Annotated[bool, typer.Option("--best", help="At its best evaluation; at its end by default.")] = False,
    batches: Annotated[int, typer.Option(min=2, help="Training batches.")] = 12,
    batch_size: Annotated[int, typer.Option(min=2, help="Images in each.")] = 128,
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Measure growth and agreement of the first layer's gradients over the power."""
    folder = checkpoint_of(run, best=best)
    network, data = load(folder, batches, batch_size)
    network.train()
    rows = []
    for case, normalize in CASES.items():
        cells = []
        for power in POWERS:
            configure(network, power, normalize=normalize)
            found = gradients(network, data)
            norm = statistics.fmean(g.norm().item() for g in found)
            pairs = (torch.cosine_similarity(a, b, dim=0).item() for a, b in itertools.combinations(found, 2))
            cells.append({"power": power, "norm": norm, "agreement": statistics.fmean(pairs)})
        rows.append({"case": case, "at": [cell | {"growth": cell["norm"] / cells[0]["norm"]} for cell in cells]})
    table = Table("growth, agreement", *(f"o = {power:g}" for power in POWERS))
    for row in rows:
        shown = (f"x {cell['growth']:.2f}, {cell['agreement']:.2f}" for cell in row["at"])
        table.add_row(row["case"], *shown)
    Console().print(table)
    if record is not None:
        whole = load_config(folder / "config.yaml").model_dump(mode="json")
        config = {group: whole[group] for group in ("model", "estimator", "train")}
        what = "norm of the first convolution's gradient relative to power 1, and mean cosine between batches"
        written = {
            "what": what,
            **about(run.parent, run.name),
            "checkpoint": folder.name,
            "batches": batches,
            "batch_size": batch_size,
        }
        write_record(record, written | {"rows": rows, "config": config})


if __name__ == "__main__":
    typer.run(main)
