"""The words behind `reste status`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from trainer.errors import DataError
from trainer.tracking.progress import format_duration
from trainer.tracking.staging import stage_names
from trainer.tracking.status import read_status


def print_status(run: Path) -> None:
    """Print where a run stands.

    Raises:
        DataError: the folder is not that of a run.
    """
    status = read_status(run)
    if status is None:
        raise DataError(f"{run} has no status.json: name the folder of a run, e.g. runs/digits")
    console = Console(highlight=False, soft_wrap=True)
    state: str = status.state
    if state == "running" and not status.alive():
        state = "gone: its process ended without a word; start it again to go on from the last checkpoint"
    console.print(f"{run}: {state}", markup=False)
    if status.stage is not None:
        names = stage_names(run)
        place = f", {names.index(status.stage) + 1} of {len(names)}" if status.stage in names else ""
        console.print(f"stage       {status.stage}{place}", markup=False)
    console.print(f"step        {status.step} of {status.total_steps}, epoch {status.epoch}")
    if status.alive() and status.eta_s is not None:
        console.print(f"to go       {format_duration(status.eta_s)}")
    for name in sorted(status.metrics):
        console.print(f"{name:<24} {status.metrics[name]:.6g}")
    console.print(f"checkpoint  {run / status.checkpoint if status.checkpoint else 'none yet'}")
    if status.trouble:
        console.print(f"NOT SAVED   {status.trouble}", markup=False)
    if status.exit_code is not None:
        console.print(f"exit code   {status.exit_code}")
    if status.error:
        console.print(status.error, markup=False)
