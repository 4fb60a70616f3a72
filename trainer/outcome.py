"""The table that a finished run prints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.errors import EXIT_STOPPED
from trainer.events import Result
from trainer.tracking.progress import format_duration


def print_outcome(directory: Path, result: Result, mlflow_command: str | None) -> None:
    """Print how a run ended, where its checkpoints are and how to look at it in MLflow."""
    console = Console(highlight=False, soft_wrap=True)
    table = Table("", "top-1 %", "top-5 %", "loss", title=str(directory), title_justify="left")
    for label, metrics in (("final", result.final), (f"best, step {result.best_step}", result.best)):
        if metrics:
            table.add_row(label, f"{metrics['top1']:.2f}", f"{metrics['top5']:.2f}", f"{metrics['loss']:.4f}")
    if table.row_count:
        console.print(table)
    console.print(
        f"{result.steps} steps, {result.samples:,} images in {format_duration(result.seconds)}, "
        f"{result.images_per_s:.0f} images/s"
    )
    console.print(f"checkpoints: {directory / 'checkpoints'}  (best: {directory / 'checkpoints' / 'best'})")
    if mlflow_command is not None:
        console.print(f"MLflow page: {mlflow_command}")
    if result.exit_code == EXIT_STOPPED:
        console.print("stopped on request with a checkpoint saved: start again to go on")
