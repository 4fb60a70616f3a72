"""`reste report`: the page, the PNGs, MLflow."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from trainer.durable import replace_file
from trainer.errors import ConfigError
from trainer.report import COMPARISON, REPORT
from trainer.report.page import make_report
from trainer.stages import begun_stages
from trainer.tracking.sync import sync_run


def report(runs: list[Path], *, out: Path | None, png: Path | None, log: bool) -> None:
    """Write the report of some runs where it is wanted; print where that is.

    Raises:
        DataError: one is no run folder, or its journal is damaged.
        ConfigError: a file cannot be written.
        UserError: MLflow refuses a run or does not answer.
    """
    console = Console(highlight=False, soft_wrap=True)
    name = REPORT if len(runs) == 1 else COMPARISON
    path = out or (runs[0] if len(runs) == 1 else Path()) / name
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent}: make it, or name another place with --out")
    parts = [part for run in runs for part in begun_stages(run)]
    made = make_report(parts)
    page = made.html().encode()
    try:
        for file in {path, *((run / name for run in parts) if log else ())}:
            replace_file(file, page)
        console.print(f"page: {path} ({_size(page)})", markup=False)
        if png is not None:
            console.print(f"pictures: {made.save_pngs(png)} in {png}", markup=False)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or path} cannot be written ({error.strerror}): name another place"
        ) from None
    for run in parts if log else ():
        sent = sync_run(run)
        console.print(f"MLflow: {name} is with run {sent.run_id} in {sent.uri}", markup=False)


def _size(page: bytes) -> str:
    return f"{len(page) / 1e6:.1f} MB" if len(page) >= 1e6 else f"{len(page) / 1e3:.0f} kB"
