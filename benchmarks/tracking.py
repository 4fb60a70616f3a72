"""What tracking takes of the thread that trains: every call of the recorder timed, with MLflow in every condition.

Trains the quickstart's network on the digits, one rank, journalling every step, once for each condition of the tracker:
no MLflow, its SQLite file, a real server, the same server behind a proxy of 2 s a call, a server that wants another
password, and nobody there. Prints the share of the training thread's time and the distribution of a call's.

    python benchmarks/tracking.py --data data/digits --record benchmarks/records/tracking.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from studies import ROOT, about, environment, write_record

sys.path.append(str(ROOT / "tests"))
from mlflow_server import Proxy, Server

CASES = ("none", "sqlite", "server", "slow", "refused", "absent")
TIMED = ("tick", "metrics", "event", "offset", "saved")
"""Methods of the recorder that the loop calls; `offset` waits for the disk and belongs to a checkpoint."""
FIXED = (
    "data.loader=torchvision", "data.image_size=16", "eval.batch_size=355",
    "train.compile=false", "train.batch_size=16", "log.every=1",
    "log.indicators_every=50", "eval.every=1ep", "checkpoint.every=1ep", "run.name=x",
)  # fmt: skip
Call = tuple[float, float]
"""Seconds on the clock, and of them those that the thread computed; the rest it waited, for a busy machine too."""
app = typer.Typer(add_completion=False)


@app.command()
def main(
    data: Annotated[Path, typer.Option(help="Prepared digits.")] = Path("data/digits"),
    epochs: Annotated[int, typer.Option(min=1)] = 20,
    case: Annotated[list[str] | None, typer.Option(help="Some of the conditions; may be repeated.")] = None,
    record: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    inner: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every condition, each in a process of its own."""
    if inner is not None:
        print(json.dumps(measure(json.loads(inner))))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as name, tracker(Path(name)) as uri_of:
        for condition in case or CASES:
            folder = Path(name) / condition
            overrides = [*FIXED, f"train.epochs={epochs}", f"data.root={data.resolve()}", f"run.dir={folder}"]
            overrides += uri_of(condition)
            command = [sys.executable, __file__, "--inner", json.dumps(overrides)]
            done = subprocess.run(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            rows[condition] = json.loads(done.stdout.splitlines()[-1])
            typer.echo(f"{condition}: {rows[condition]}", err=True)
        facts = about(Path(name) / (case or CASES)[0], "x")
    show(rows)
    if record is not None:
        write_record(record, {**facts, "epochs": epochs, "conditions": rows})


@contextmanager
def tracker(folder: Path) -> Iterator[Callable[[str], list[str]]]:
    """A server and its proxy; yields the overrides of each condition."""
    server = Server(folder)
    server.start()
    proxy = Proxy(server.port)

    def overrides(condition: str) -> list[str]:
        proxy.delay_s = 2.0 if condition == "slow" else 0.0
        proxy.login = "somebody:else" if condition == "refused" else None
        if condition == "none":
            return ["tracking.enabled=false"]
        uri = {"sqlite": "null", "server": server.uri, "absent": "http://127.0.0.1:9"}.get(condition, proxy.uri)
        return [f"tracking.uri={uri}"]

    try:
        yield overrides
    finally:
        proxy.close()
        server.kill()


def measure(overrides: list[str]) -> dict[str, Any]:
    """Train here with the recorder's calls timed; their share of the training and their distribution, in ms."""
    from trainer.assembly import build
    from trainer.config import load_config
    from trainer.logs import speak_plainly
    from trainer.loop import train

    speak_plainly(0)
    taken: dict[str, list[Call]] = {name: [] for name in TIMED}
    run = build(load_config(ROOT / "configs" / "quickstart.yaml", overrides))
    for name in TIMED:
        setattr(run.recorder, name, timed(getattr(run.recorder, name), taken[name]))
    closing: list[Call] = []
    run.recorder.close = timed(run.recorder.close, closing)  # type: ignore[method-assign]
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        screen, sys.stdout = sys.stdout, nowhere
        try:
            train(run)
        finally:
            sys.stdout = screen
    ended = sum(wall for wall, _ in closing)
    seconds = time.perf_counter() - began - ended
    run.close()
    both = [call for name in TIMED if name != "offset" for call in taken[name]]
    calls, computing = sorted(wall for wall, _ in both), sorted(own for _, own in both)
    return {
        "training_s": round(seconds, 2),
        "calls": len(calls),
        "share_percent": round(100 * sum(calls) / seconds, 3),
        "median_ms": round(1e3 * statistics.median(calls), 3),
        "p99_ms": round(1e3 * calls[int(0.99 * len(calls))], 3),
        "longest_ms": round(1e3 * calls[-1], 3),
        "cpu_p99_ms": round(1e3 * computing[int(0.99 * len(computing))], 3),
        "offset_longest_ms": round(1e3 * max((wall for wall, _ in taken["offset"]), default=0.0), 3),
        "closing_s": round(ended, 2),
    }


def timed(method: Callable[..., Any], taken: list[Call]) -> Callable[..., Any]:
    """The same method, which notes how long each call takes."""

    def call(*arguments: Any, **options: Any) -> Any:
        began, own = time.perf_counter(), time.thread_time()
        try:
            return method(*arguments, **options)
        finally:
            taken.append((time.perf_counter() - began, time.thread_time() - own))

    return call


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print a line for each condition."""
    table = Table(
        "MLflow", "calls", "share of training %", "median ms", "p99 ms", "p99 computing", "longest ms", "closing s"
    )
    for condition, row in rows.items():
        keys = ("calls", "share_percent", "median_ms", "p99_ms", "cpu_p99_ms", "longest_ms", "closing_s")
        table.add_row(condition, *(str(row[key]) for key in keys))
    Console().print(table)


if __name__ == "__main__":
    app()
