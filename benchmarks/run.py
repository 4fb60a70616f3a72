"""Speed, printed as ratios of two things measured side by side in one process; nothing is asserted.

python benchmarks/run.py [loader|loop|indicators|step|all] [--repeats 7] [--quick] [--processor] [--record FILE]

A ratio is the median over interleaved repeats of (time of the other) / (time of ours): above 1 ours is faster.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.tracking.manifest import build_manifest


@dataclass(frozen=True)
class Row:
    """One comparison: ratios of times, other / ours."""

    what: str
    aim: str
    median: float
    lowest: float
    highest: float
    ours_ms: float
    other_ms: float


def compare(
    what: str,
    aim: str,
    ours: Callable[[], None],
    other: Callable[[], None],
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Time two callables in turn, each first every other time, after two unmeasured calls of each."""
    for _ in range(2):
        ours()
        other()
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            theirs, own = _time(other, clock), _time(ours, clock)
        else:
            own, theirs = _time(ours, clock), _time(other, clock)
        pairs.append((own, theirs))
    ratios = [b / a for a, b in pairs]
    return Row(
        what,
        aim,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        1e3 * statistics.median(a for a, _ in pairs),
        1e3 * statistics.median(b for _, b in pairs),
    )


def _time(work: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def measure(which: str, repeats: int, quick: bool, compare: Callable[..., Row]) -> Iterator[Row]:
    """The rows of the benchmarks that were asked for."""
    if which in {"loader", "all"}:
        from loaders import loader_rows

        yield from loader_rows(compare, repeats, quick)
    if which in {"loop", "all"}:
        from networks import loop_rows

        yield from loop_rows(compare, repeats, quick)
    if which in {"indicators", "all"}:
        from networks import indicator_rows

        yield from indicator_rows(compare, repeats, quick)
    if which in {"step", "all"}:
        from networks import step_rows

        yield from step_rows(compare, repeats, quick)


def main(
    which: Annotated[str, typer.Argument(help="loader, loop, indicators, step or all.")] = "all",
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: to see that it runs.")] = False,
    processor: Annotated[
        bool, typer.Option("--processor", help="Time of this process's processors, for machines that others use too.")
    ] = False,
    record: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Measure and print."""
    console = Console(highlight=False, soft_wrap=True, width=140)
    table = Table("other / ours", "ratio", "min .. max", "aim", "ours ms", "other ms")
    rows = []
    timed = partial(compare, clock=time.process_time if processor else time.perf_counter)
    for row in measure(which, repeats, quick, timed):
        rows.append(row)
        spread = f"{row.lowest:.2f} .. {row.highest:.2f}"
        table.add_row(row.what, f"{row.median:.2f}", spread, row.aim, f"{row.ours_ms:.1f}", f"{row.other_ms:.1f}")
    console.print(table)
    manifest = build_manifest(seed=0, config_digest="", data_digest="", world_size=1)
    facts: dict[str, Any] = {
        "what": f"ratios of {'processor' if processor else 'wall'} times, other / ours; medians of interleaved repeats",
        "command": shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {key: manifest["machine"][key] for key in ("cpu", "cpus", "gpus")},
        "versions": manifest["versions"],
        "code": manifest["code"],
        "repeats": repeats,
        "quick": quick,
        "rows": [asdict(row) for row in rows],
    }
    versions = "  ".join(f"{name} {facts['versions'].get(name, 'none')}" for name in ("python", "torch", "dali"))
    machine = f"{facts['machine']['cpu']}, {facts['machine']['cpus']} cores"
    console.print(f"{facts['command']}  {machine}  {versions}  {facts['date']}")
    if record is not None:
        record.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
