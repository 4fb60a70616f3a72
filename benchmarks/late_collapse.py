"""The late collapse of short trainings with o_end = 3, and what the normalised slope does about it.

Trains the same network on the icons (`benchmarks/icons.py`) with the official recipe and with this project's default,
20 epochs each, and compares the best and the last evaluation:

    python benchmarks/icons.py data/icons
    python benchmarks/late_collapse.py --record benchmarks/records/late_collapse.json

Two runs at a time, one thread each; finished runs are not made again.
"""

from __future__ import annotations

import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from studies import REFERENCE, about, series, show, spread, train, write_record

from reste import binary_layers
from trainer import checkpoint, checkpoints
from trainer.config import load_config
from trainer.network import create_network

CONFIG = "configs/base.yaml"
CASES: dict[str, tuple[str, ...]] = {
    "official recipe": REFERENCE,
    "default": (),
    "default, published slope": ("estimator.normalize=false",),
    "official recipe, normalised slope": (*REFERENCE, "estimator.normalize=true"),
    "default, o_end 2": ("estimator.o_end=2",),
    "default, whole batches": ("train.drop_last=true",),
    "default, fixed momentum of statistics": ("batchnorm.momentum=fixed",),
    "default, one rate": ("optim.binary_lr=1",),
    "default, clipped STE": ("estimator.name=ste", "estimator.threshold=1.5"),
}
"""Name -> what the case sets beyond the common values."""


def main(
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/late_collapse"),
    data: Annotated[Path, typer.Option(help="A data set, from benchmarks/icons.py.")] = Path("data/icons/shifted"),
    cases: Annotated[list[str] | None, typer.Option("--case", help="Only these; all by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 5,
    epochs: Annotated[int, typer.Option(min=2, help="Length of a run.")] = 20,
    image_size: Annotated[int, typer.Option(min=8, help="Pixels.")] = 24,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Train every case with every seed; compare final with best accuracy."""
    chosen = {name: CASES[name] for name in cases or CASES}
    common = [
        f"data.root={data}",
        "data.loader=torchvision",
        "data.workers=1",
        f"data.image_size={image_size}",
        f"augment={{crop: pad, pad: {image_size // 8}, flip: true}}",
        "model.name=resnet20_1w1a",
        "estimator.o_end=3",
        f"train={{epochs: {epochs}, batch_size: 128, compile: true}}",
        "optim.lr=0.1",
        "log={every: 1ep, indicators_every: 1ep}",
        "eval.batch_size=256",
        f"checkpoint.every={epochs}ep",
    ]
    names = {case: [f"{case.replace(',', '').replace(' ', '_')}_{seed}" for seed in range(seeds)] for case in chosen}
    # Seed by seed, so that every case has been seen when the time runs out.
    order = [(case, seed) for seed in range(seeds) for case in chosen]
    with ThreadPoolExecutor(jobs) as pool:
        started = [
            pool.submit(train, folder, names[case][seed], CONFIG, [*common, *chosen[case], f"seed={seed}"])
            for case, seed in order
        ]
        for future in started:
            future.result()
    rows = [row(folder, case, list(chosen[case]), names[case]) for case in chosen]
    show(rows, ("best_top1", "final_top1", "lost_since_best", "lowest_train_loss", "final_train_loss"))
    if record is not None:
        what = f"top-1 in percent of resnet20_1w1a on the icons at {image_size} pixels, {epochs} epochs, o_end 3"
        write_record(
            record,
            {"what": what, **about(folder, rows[0]["names"][0]), "config": CONFIG, "common": common, "rows": rows},
        )


def row(folder: Path, case: str, overrides: list[str], names: list[str]) -> dict[str, Any]:
    """What the runs of one case came to."""
    top1 = [series(folder, name, "val/top1") for name in names]
    mean_top1 = [statistics.fmean(at) for at in zip(*top1, strict=True)]
    loss = [series(folder, name, "train/loss") for name in names]
    instability = [series(folder, name, "indicator/gradient_instability") for name in names]
    return {
        "case": case,
        "overrides": overrides,
        "names": names,
        "code": json.loads((folder / names[0] / "manifest.json").read_text())["code"],
        "best_top1": spread([max(run) for run in top1]),
        "final_top1": spread([run[-1] for run in top1]),
        "lost_since_best": spread([max(run) - run[-1] for run in top1]),
        "lowest_train_loss": spread([min(run) for run in loss]),
        "final_train_loss": spread([run[-1] for run in loss]),
        "signs_flipped_since_start": [flipped(folder / name, since_start=True) for name in names],
        "signs_flipped_since_best": [flipped(folder / name) for name in names],
        "lost_since_best_of_the_mean": round(max(mean_top1) - mean_top1[-1], 2),
        "top1_by_epoch": [[round(value, 2) for value in run] for run in top1],
        "mean_top1_by_epoch": [round(value, 2) for value in mean_top1],
        "mean_train_loss_by_epoch": [round(statistics.fmean(at), 4) for at in zip(*loss, strict=True)],
        "mean_instability_by_epoch": [float(f"{statistics.fmean(at):.3g}") for at in zip(*instability, strict=True)],
    }


def flipped(run: Path, *, since_start: bool = False) -> float:
    """Binary weights, in percent, whose sign at the end is not that of the best evaluation (or of the beginning)."""
    best, last = (run / "checkpoints" / "best", checkpoints.steps(run / "checkpoints")[-1])
    classes = checkpoint.read_manifest(last)["classes"]
    network = create_network(load_config(run / "config.yaml"), classes, torch.device("cpu"))
    names = [f"{name}.weight" for name, _ in binary_layers(network)]
    then, now = (checkpoint.load_payload(path, "model") for path in (best, last))
    if since_start:
        then = network.state_dict()
    changed = torch.cat([((then[name] >= 0) != (now[name] >= 0)).flatten() for name in names])
    return round(100 * changed.double().mean().item(), 3)


if __name__ == "__main__":
    typer.run(main)
