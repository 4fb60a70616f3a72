"""The words behind `reste ckpt`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.errors import DataError
from trainer.inspection import Entry, folder_of, stand_in, survey, verify
from trainer.tracking.progress import format_duration


def convert_official(file: Path, model: str, out: Path, config: Path | None, overrides: list[str]) -> None:
    """Convert an official checkpoint and say what it is and what can be done with it.

    Raises:
        ConfigError: as `trainer.convert.convert`.
    """
    # Its import takes seconds, which the other commands need not wait for.
    from trainer.convert import convert

    found = convert(file, model, out, config=config, overrides=overrides)
    told = {"model": "model {}", "epoch": "epoch {}", "best_prec1": "best top-1 {:.2f} %"}
    facts = ", ".join(told[key].format(value) for key, value in found.facts.items())
    net = found.config.model
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{found.folder}: {net.name}, {net.weight_bits}W{net.activation_bits}A, {net.num_classes} classes, "
        f"{net.numerics} numerics",
        markup=False,
    )
    console.print(f"the file says: {facts or 'nothing beside its weights'}", markup=False)
    console.print(f"evaluate it:   reste evaluate {out} --data ROOT", markup=False)
    console.print(f"train from it: model.init={out}", markup=False)


def print_list(run: Path, *, as_json: bool) -> None:
    """Print the checkpoints of a run, oldest first, and what is wrong with them.

    Raises:
        ConfigError: there is none.
    """
    entries = survey(folder_of(run))
    if as_json:
        print(json.dumps([asdict(entry) | {"path": str(entry.path)} for entry in entries], indent=1))
        return
    heads = ("checkpoint", "step", "epoch", "top-1 %", "MiB", "saved", "", "")
    table = Table(*heads, title=str(run), title_justify="left")
    for entry in entries:
        table.add_row(
            entry.path.name,
            "-" if entry.step is None else str(entry.step),
            "-" if entry.epoch is None else f"{entry.epoch:.2f}",
            "-" if entry.top1 is None else f"{entry.top1:.2f}",
            f"{entry.bytes / 2**20:,.1f}",
            "-" if entry.time is None else f"{format_duration(time.time() - entry.time)} ago",
            "best" if entry.best else "",
            "; ".join(entry.problems) or "whole",
        )
    Console(highlight=False, soft_wrap=True).print(table)


def print_verified(paths: list[Path], *, as_json: bool) -> None:
    """Print for every checkpoint whether each byte of it is as it was written.

    Raises:
        ConfigError: a path names neither a checkpoint nor a run.
        DataError: some are damaged.
    """
    entries = [entry for path in paths for entry in verify(path)]
    if as_json:
        print(json.dumps([{"path": str(entry.path), "problems": entry.problems} for entry in entries], indent=1))
    else:
        console = Console(highlight=False, soft_wrap=True)
        for entry in entries:
            console.print(f"{'DAMAGED' if entry.problems else 'whole  '}  {entry.path}", markup=False)
            for line in _told(entry):
                console.print(f"         {line}", markup=False)
    damaged = [entry for entry in entries if entry.problems]
    if damaged:
        raise DataError(f"{len(damaged)} of {len(entries)} damaged: restore them from a copy, or go on without them")


def _told(entry: Entry) -> list[str]:
    if not entry.problems:
        return []
    instead = stand_in(entry)
    start = "begins anew" if instead is None else f"goes on from {instead.name}"
    return [*entry.problems, f"a start of its run {start}"]
