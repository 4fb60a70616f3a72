"""What each difference from the official code does to a small real training: each alone, and all together.

Trains the quickstart's network on the digits, one rank, one run after the other, with equal seeds on both sides of a
comparison. Runs live in `--runs`; started again, it goes on where it was.

    reste prepare digits data/digits
    OMP_NUM_THREADS=1 python benchmarks/differences.py --record benchmarks/records/differences.json
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from trainer import build, load_config, train

ROOT = Path(__file__).resolve().parent.parent
QUICK = ROOT / "configs" / "quickstart.yaml"
FIXED = (
    "data.loader=torchvision",
    "train.batch_size=64",
    "optim.warmup=2ep",
    "log.indicators_every=0",
    "eval.every=0",
    "log.print_s=1000",
    "tracking.enabled=false",
)


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
    "no_decay": Variant(NO_DECAY),
    "power": Variant(POWER),
    "rate": Variant(RATE),
    "all": Variant(NUMERICS + NO_DECAY + POWER + RATE),
    "crops_default": Variant((*RRC, "augment.scale=[0.08, 1.0]")),
    "crops": Variant((*RRC, "augment.scale=[0.08, 1.25]"), against="crops_default"),
}


def train_one(name: str, seed: int, folder: Path, overrides: list[str]) -> dict[str, float]:
    """Train one variant with one seed, or go on with it; returns its final evaluation."""
    own = [f"seed={seed}", f"run.name={name}_{seed}", f"run.dir={folder}"]
    run = build(load_config(QUICK, [*FIXED, *overrides, *VARIANTS[name].overrides, *own]))
    try:
        result = train(run)
    finally:
        run.close()
    if result.exit_code:
        raise SystemExit(result.exit_code)  # asked to stop; the run goes on at the next start
    return result.final


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}


def summarise(found: dict[str, dict[int, dict[str, float]]]) -> list[dict[str, Any]]:
    """One row for every variant: top-1 and loss over the seeds, and their paired differences to its counterpart."""
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {"variant": name, "against": VARIANTS[name].against, "runs": len(runs)}
        other = found[VARIANTS[name].against]
        for metric in ("top1", "loss"):
            row[metric] = spread([run[metric] for run in runs.values()])
            row[f"{metric}_difference"] = spread([run[metric] - other[seed][metric] for seed, run in runs.items()])
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table."""
    table = Table("variant", "against", "runs", "top-1 %", "difference", "loss", "difference")
    for row in rows:
        forms = {"top1": ".2f", "top1_difference": "+.2f", "loss": ".4f", "loss_difference": "+.4f"}
        cells = [f"{row[key]['mean']:{form}} ± {row[key]['sd']:{form.lstrip('+')}}" for key, form in forms.items()]
        table.add_row(row["variant"], row["against"], str(row["runs"]), *cells)
    Console().print(table)


def main(
    epochs: Annotated[int, typer.Option(min=5, help="Epochs of each run.")] = 8,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    data: Annotated[Path, typer.Option(help="The digits.")] = Path("data/digits"),
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs/differences"),
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Train every variant with every seed and print what each difference does."""
    torch.set_num_threads(1)
    overrides = [f"train.epochs={epochs}", f"data.root={data}"]
    found: dict[str, dict[int, dict[str, float]]] = {}
    for seed in range(seeds):
        for name in VARIANTS:
            found.setdefault(name, {})[seed] = train_one(name, seed, runs, overrides)
            typer.echo(f"{name}, seed {seed}: top-1 {found[name][seed]['top1']:.2f} %", err=True)
        # After every seed, so that what is there is on record should the next one be interrupted.
        rows = summarise(found)
        if record is not None:
            manifest = json.loads((runs / "default_0" / "manifest.json").read_text(encoding="utf-8"))
            write_record(record, found, rows, [*FIXED, f"train.epochs={epochs}"], manifest)
    show(rows)


def write_record(
    record: Path,
    found: dict[str, dict[int, dict[str, float]]],
    rows: list[dict[str, Any]],
    overrides: list[str],
    manifest: dict[str, Any],
) -> None:
    """Write what was measured, and where."""
    written = {
        "what": "final top-1 (%) and loss of a small training with each difference from the official code alone",
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "config": "configs/quickstart.yaml",
        "overrides": overrides,
        "variants": {name: variant.overrides for name, variant in VARIANTS.items()},
        "machine": {key: manifest["machine"][key] for key in ("platform", "cpu", "cpus", "gpus")},
        "threads": 1,
        "code": manifest["code"],
        "versions": manifest["versions"],
        "rows": rows,
        "final": {name: {str(seed): run for seed, run in by_seed.items()} for name, by_seed in found.items()},
    }
    record.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
