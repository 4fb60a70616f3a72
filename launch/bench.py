"""The screens of `reste bench`: rows of ratios, and the search for this machine's loader settings."""

from __future__ import annotations

import os
import time
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

# Read when torch is imported: its profiler would tell of every start and stop, and of what it has not seen allocated.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
from rich.console import Console
from rich.table import Table

from trainer.bench import suite
from trainer.bench.core import Bench, Row
from trainer.bench.sweep import Sweep, Swept, Tried
from trainer.errors import ConfigError
from trainer.site import writable_site, write_site
from trainer.tracking.files import write_json

COLORS = {"aim": "green", "must": "yellow", "missed": "red"}
WIDTH = 190
"""Columns of the table where there is no terminal that says its own."""


def run(names: list[str], *, repeats: int, quick: bool, processor: bool, out: Path | None) -> None:
    """Measure rows, print them, keep each in a file as soon as it is done.

    Args:
        names: rows; none for all.
        repeats: measured rounds.
        quick: tiny sizes; nothing is kept unless `out` is given.
        processor: count processors' time.
        out: folder for the files.

    Raises:
        ConfigError: an unknown row or a folder that cannot be written; after all others, rows that failed.
    """
    wanted = suite.check_names(names)
    device = _device()
    if processor and device.type == "cuda":
        raise ConfigError(
            "--processor counts the time of this machine's cores, which says nothing of a GPU: leave it out"
        )
    bench = Bench(device, suite.native_dtype(device), repeats, quick, processor)
    folder = out if out is not None or quick else suite.record_folder()
    if folder is not None:
        _make(folder)
    console, aside = _consoles()
    rows: list[Row] = []
    failed: dict[str, Exception] = {}
    for name in wanted:
        aside.print(f"{name} ...", markup=False)
        begun = time.monotonic()
        try:
            found = list(suite.measure(name, bench))
        except Exception as error:  # told at the end, with what the other rows have found
            if not isinstance(error, ConfigError):
                traceback.print_exception(error)
            failed[name] = error
            continue
        rows += found
        if folder is not None:
            facts = suite.facts(bench, time.monotonic() - begun) | suite.rates(name, bench, found)
            write_json(folder / f"{name}.json", facts | {"rows": [asdict(row) for row in found]})
    if rows:
        console.print(table(rows, judged=not quick))
    where = f"{device.type}, {bench.precision}, {repeats} rounds, {'processor' if processor else 'wall'} time"
    console.print(where + (", quick: not a measurement" if quick else ""), markup=False)
    if folder is not None:
        console.print(f"written to {folder}/", markup=False)
    if failed:
        raise _summary(failed)


def _summary(failed: dict[str, Exception]) -> ConfigError:
    """One line for all rows that could not be measured."""
    told = []
    for name, error in failed.items():
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        told.append(f"{name} ({kind}{lines[0] if lines else 'no reason given'})")
    return ConfigError(f"not measured: {'; '.join(told)}; mend that, and run: reste bench {' '.join(failed)}")


def table(rows: list[Row], *, judged: bool) -> Table:
    """A line for each ratio; whether it has reached its goal is told only of real sizes."""
    shown = Table("row", "what", "ratio", "spread", "must, aim", "reached", "ours", "other", "where")
    for row in rows:
        sign = "≥" if row.better == "higher" else "≤"
        goal = "-" if row.must is None else f"{sign} {row.must:g}, {row.aim:g}"
        figures = (f"{figure:.4g} {row.unit}" for figure in (row.ours, row.other))
        spread = f"{row.lowest:.2f} .. {row.highest:.2f}"
        reached = f"[{COLORS[row.reached]}]{row.reached}[/]" if row.reached and judged else "-"
        shown.add_row(row.row, row.what, f"{row.median:.3f}", spread, goal, reached, *figures, row.where)
    return shown


def sweep(root: Path, *, repeats: int, seconds: float, image_size: int = 224, out: Path | None, keep: bool) -> None:
    """Find this machine's best loader settings for a data set and put them into the site file.

    Args:
        root: a prepared data set.
        repeats: rounds.
        seconds: of one measurement.
        image_size: pixels.
        out: folder for a record of all that was tried, if one is wanted.
        keep: whether to write the site file.

    Raises:
        ConfigError: the site file cannot be written; found before anything is measured.
        DataError: the data set is not prepared.
    """
    if keep:
        writable_site()
    if out is not None:
        _make(out)
    device = _device()
    sweeping = Sweep(root, device, image_size=image_size, repeats=repeats, seconds=seconds)
    console, aside = _consoles()
    begun = time.monotonic()
    with aside.status("") as status:
        found = sweeping.run(status.update)
    facts = suite.facts(Bench(device, repeats=repeats), time.monotonic() - begun)
    console.print(tried_table("read as fast as it goes", found.decoding))
    console.print(tried_table("read by a step that takes 0.9 of that", found.waiting))
    machine = f"{facts['machine']['cpu']}, {facts['machine']['cpus']} cores" + "".join(
        f", {gpu}" for gpu in facts["machine"]["gpus"]
    )
    if out is not None:
        write_json(out / "sweep.json", facts | asdict(found))
    values = ", ".join(f"{key}={value}" for key, value in found.best.items())
    told = "quick: not a measurement, and not written"
    if keep:
        path = write_site(found.best, _comment(found, machine, root, image_size))
        told = f"written to {path}, beneath every configuration from now on"
    console.print(f"{values}: {told}", markup=False)


def tried_table(title: str, tried: list[Tried]) -> Table:
    """A line for each setting."""
    shown = Table(*tried[0].values, "images/s", "lowest .. highest", title=title, title_justify="left")
    for setting in tried:
        rates = setting.images_per_s
        spread = f"{min(rates):.0f} .. {max(rates):.0f}"
        shown.add_row(*map(str, setting.values.values()), f"{setting.median:.0f}", spread)
    return shown


def _comment(found: Swept, machine: str, root: Path, image_size: int) -> str:
    return (
        f"Defaults of this machine, beneath every configuration. By `reste bench loader`, "
        f"{datetime.now(UTC).date().isoformat()}:\n"
        f"{machine}; {found.images_per_s:.0f} images/s of {image_size} px from {root} by {found.loader}, one rank."
    )


def _consoles() -> tuple[Console, Console]:
    out = Console(highlight=False, soft_wrap=True)
    return out if out.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH), Console(stderr=True)


def _device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror}): give another folder by --out") from None
