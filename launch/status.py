"""The words behind `reste status`."""

from __future__ import annotations

import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from trainer.errors import DataError
from trainer.tracking.progress import format_duration
from trainer.tracking.staging import stage_names
from trainer.tracking.status import Status, read_status


def print_status(run: Path) -> None:
    """Print where a run stands, or a line for each run of a folder, the newest last.

    Raises:
        DataError: the folder is not that of a run, and there is none in it.
    """
    status = read_status(run)
    if status is None:
        runs = [(found, path) for path in _folders(run) if (found := read_status(path)) is not None]
        if not runs:
            raise DataError(
                f"{run} has no status.json: name the folder of a run, e.g. runs/digits, or a folder of runs"
            )
        _print_runs(sorted(runs, key=lambda each: each[0].time))
        return
    console = Console(highlight=False, soft_wrap=True)
    state = _state(status)
    if state == "gone":
        state += ": its process ended without a word; start it again to go on from the last checkpoint"
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


def _state(status: Status) -> str:
    return "gone" if status.state == "running" and not status.alive() else status.state


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _print_runs(runs: list[tuple[Status, Path]]) -> None:
    table = Table(box=box.SIMPLE)
    for heading in ("run", "state", "step", "top-1 %", "to go", "last sign"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right", overflow="fold")
    for status, path in runs:
        top1 = status.metrics.get("val/top1")
        table.add_row(
            path.name,
            _state(status) + (f", {status.stage}" if status.stage else ""),
            f"{status.step}/{status.total_steps}",
            "" if top1 is None else f"{top1:.2f}",
            format_duration(status.eta_s) if status.alive() and status.eta_s is not None else "",
            f"{format_duration(time.time() - status.time)} ago",
        )
    Console(highlight=False, markup=False).print(table)
