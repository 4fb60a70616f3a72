"""How far the losses of 1, 2 and 3 ranks drift apart, in float32 and in float64.

Trains the quickstart's network for a few steps on synthetic images with the real command line, once per precision and
number of ranks, and prints the largest difference of the training loss to that of one rank.

    python benchmarks/drift.py --record benchmarks/records/drift.json
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.tracking.journal import read_journal

ROOT = Path(__file__).resolve().parent.parent
WORLDS = (1, 2, 3)
PRECISIONS = ("fp32", "fp64")
RANGES = ((1, 1), (2, 5), (6, 10), (11, 20))
# 343 images in batches of 48: seven full ones and one of 7 images, which 2 and 3 ranks share unevenly.
FIXED = (
    "data.loader=synthetic",
    "data.synthetic={samples: 343, classes: 10}",
    "train.compile=false",
    "tracking.enabled=false",
    "resume=never",
    "log.every=1",
    "log.indicators_every=0",
    "eval.every=0",
    "checkpoint.every=0",
)
LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "RESTE_")
PLACES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

Losses = list[float]


def environment() -> dict[str, str]:
    """No launcher's variables, no GPU, one thread a rank: a thread count is one more source of rounding."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS) and k not in PLACES}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def train(folder: Path, precision: str, world: int, overrides: list[str]) -> Losses:
    """Train in `folder` and return the loss of every step."""
    name = f"{precision}_{world}"
    own = [f"train.precision={precision}", f"run.dir={folder}", f"run.name={name}"]
    command = [sys.executable, "-m", "launch", "train", str(ROOT / "configs" / "quickstart.yaml"), *overrides, *own]
    done = subprocess.run(
        [*command, "--nproc", str(world)], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    if done.returncode != 0:
        raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    journal = read_journal(folder / name / "journal.jsonl")
    return [r["metrics"]["train/loss"] for _, r in journal if "train/loss" in r.get("metrics", {})]


def furthest(losses: Losses, alone: Losses, first: int, last: int) -> float | None:
    """Largest difference over steps `first` to `last`, 1-based; None if there are none."""
    pairs = list(zip(losses, alone, strict=True))[first - 1 : last]
    return max((abs(a - b) for a, b in pairs), default=None)


def measure(folder: Path, overrides: list[str]) -> dict[str, dict[int, Losses]]:
    """Losses by precision and number of ranks."""
    found: dict[str, dict[int, Losses]] = {}
    for precision in PRECISIONS:
        for world in WORLDS:
            found.setdefault(precision, {})[world] = train(folder, precision, world, overrides)
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


def facts(folder: Path) -> dict[str, Any]:
    """Machine, versions and code, as the runs' own manifest has them."""
    manifest = json.loads((folder / f"{PRECISIONS[0]}_1" / "manifest.json").read_text())
    machine = {key: manifest["machine"][key] for key in ("platform", "cpu", "cpus", "gpus")}
    return {"machine": machine, "threads_per_rank": 1, "code": manifest["code"], "versions": manifest["versions"]}


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
        about = facts(folder)
    rows = differences(found)
    show(rows)
    if record is not None:
        written = {
            "what": "largest difference of the training loss to that of one rank, by range of steps",
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.now(UTC).date().isoformat(),
            "config": "configs/quickstart.yaml",
            "overrides": overrides,
            **about,
            "rows": rows,
            "losses": {precision: {str(world): runs[world] for world in runs} for precision, runs in found.items()},
        }
        record.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
