"""What each difference from the official code does to a small real training: each alone, and all together.

Trains the quickstart's network on the digits, one rank, one thread, with equal seeds on both sides of a comparison.
Finished runs are not made again.

    reste prepare digits data/digits
    python benchmarks/differences.py --record benchmarks/records/differences.json
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from studies import about, spread, train, write_record

CONFIG = "configs/quickstart.yaml"
FIXED = (
    "data.loader=torchvision",
    "train.batch_size=64",
    "optim.warmup=2ep",
    "log.indicators_every=0",
    "eval.every=0",
)
DIGITS = {"top1": 2, "loss": 4}


@dataclass(frozen=True)
class Variant:
    """Overrides of one run, and the variant that it is compared with."""

    overrides: tuple[str, ...]
    against: str = "default"


NUMERICS = ("model.numerics=reference",)
NO_DECAY = ("optim.no_decay=[]",)
POWER = ("estimator.granularity=epoch",)
RATE = ("optim.schedule=reference",)
RRC = ("augment.crop=rrc", "augment.eval_resize=16")
VARIANTS = {
    "default": Variant(()),
    "numerics": Variant(NUMERICS),
    "slope": Variant(("estimator.normalize=false",)),
    "no_decay": Variant(NO_DECAY),
    "binary_lr": Variant(("optim.binary_lr=1",)),
    "power": Variant(POWER),
    "rate": Variant(RATE),
    "all": Variant(NUMERICS + NO_DECAY + POWER + RATE),
    "crops_default": Variant((*RRC, "augment.scale=[0.08, 1.0]")),
    "crops": Variant((*RRC, "augment.scale=[0.08, 1.25]"), against="crops_default"),
}


def summarise(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """One row for every variant: top-1 and loss over the seeds, and their paired differences to its counterpart."""
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"variant": name, "against": VARIANTS[name].against, "runs": len(runs)}
        other = found[VARIANTS[name].against]
        for metric, digits in DIGITS.items():
            row[metric] = spread([run[metric] for run in runs], digits)
            pairs = zip(runs, other, strict=True)
            row[f"{metric}_difference"] = spread([run[metric] - twin[metric] for run, twin in pairs], digits)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table("variant", "against", "runs", "top-1 %", "difference", "loss", "difference")
    for row in rows:
        forms = {"top1": ".2f", "top1_difference": "+.2f", "loss": ".4f", "loss_difference": "+.4f"}
        cells = [f"{row[key]['mean']:{form}} ± {row[key]['std']:{form.lstrip('+')}}" for key, form in forms.items()]
        table.add_row(row["variant"], row["against"], str(row["runs"]), *cells)
    Console().print(table)


def main(
    epochs: Annotated[int, typer.Option(min=5, help="Epochs of each run.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    data: Annotated[Path, typer.Option(help="The digits.")] = Path("data/digits"),
    folder: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/differences"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Train every variant with every seed and print what each difference does."""
    common = [*FIXED, f"train.epochs={epochs}", f"data.root={data}"]
    with ThreadPoolExecutor(jobs) as pool:
        started = {
            (name, seed): pool.submit(
                train, folder, f"{name}_{seed}", CONFIG, [*common, *VARIANTS[name].overrides, f"seed={seed}"]
            )
            for seed in range(seeds)
            for name in VARIANTS
        }
        found = {name: [started[name, seed].result()["final"] for seed in range(seeds)] for name in VARIANTS}
    rows = summarise(found)
    show(rows)
    if record is not None:
        what = "final top-1 (%) and loss of a small training with each difference from the official code alone"
        variants = {name: variant.overrides for name, variant in VARIANTS.items()}
        facts = {**about(folder, "default_0"), "config": CONFIG, "overrides": common, "variants": variants}
        write_record(record, {"what": what, **facts, "rows": rows, "final": found})


if __name__ == "__main__":
    typer.run(main)
