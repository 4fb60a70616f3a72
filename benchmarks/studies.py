"""Whole trainings by the real command line, side by side: what accuracy studies share."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.tracking.journal import read_journal

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "RESTE_")
REFERENCE = (
    "model.numerics=reference",
    "optim.no_decay=[]",
    "optim.granularity=epoch",
    "estimator.granularity=epoch",
)
"""The official recipe's choices, as overrides of this project's defaults."""
PLACES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def environment() -> dict[str, str]:
    """No launcher's variables, no GPU, one thread a rank: a thread count is one more source of rounding."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS) and k not in PLACES}
    return kept | {"RESTE_SITE": "", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def train(folder: Path, name: str, config: str, overrides: list[str], *, ranks: int = 1) -> dict[str, Any]:
    """`result.json` of one run; a finished run is not made again, a broken one goes on.

    Raises:
        SystemExit: training failed; its last lines are shown.
    """
    result = folder / name / "result.json"
    if not result.is_file():
        own = [f"run.dir={folder}", f"run.name={name}", "tracking.enabled=false"]
        command = [sys.executable, "-m", "launch", "train", config, *overrides, *own, "--nproc", str(ranks)]
        done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(result.read_text())
    typer.echo(f"{name}: final top-1 {found['final']['top1']:.2f}, best {found['best']['top1']:.2f}", err=True)
    return found


def series(folder: Path, name: str, metric: str) -> list[float]:
    """All values of a metric in a run's journal, in order."""
    records = (record for _, record in read_journal(folder / name / "journal.jsonl"))
    return [r["metrics"][metric] for r in records if metric in r.get("metrics", {})]


def spread(values: list[float], digits: int = 2) -> dict[str, Any]:
    """Mean, standard deviation and the values themselves, rounded to `digits` decimals."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(statistics.fmean(values), digits),
        "std": round(deviation, digits),
        "runs": [round(v, digits) for v in values],
    }


def show(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print a line for each row: its case, then mean and deviation of every column, which are `spread`s."""
    table = Table("case", *(name.replace("_", " ") for name in columns))
    for each in rows:
        table.add_row(each["case"], *(f"{each[name]['mean']:.2f} +- {each[name]['std']:.2f}" for name in columns))
    Console().print(table)


def about(folder: Path, name: str) -> dict[str, Any]:
    """Command, date, machine, versions and code of a study, the latter from one run's manifest."""
    manifest = json.loads((folder / name / "manifest.json").read_text())
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {key: manifest["machine"][key] for key in ("platform", "cpu", "cpus", "gpus")},
        "threads_per_rank": 1,
        "code": manifest["code"],
        "versions": manifest["versions"],
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write what was measured as JSON."""
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
