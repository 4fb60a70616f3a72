"""What the screens of `reste study` share: training what is not trained yet, one MLflow run above all of it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Generic

from rich.console import Console

from launch import local
from launch.children import Children
from launch.prepare import progress
from trainer.data.datasets import open_datasets
from trainer.distributed.environment import is_rank
from trainer.errors import EXIT_BUG, EXIT_FINISHED, EXIT_STOPPED, ConfigError, UserError
from trainer.logs import speak_plainly
from trainer.secrets import redact
from trainer.study.sweep import P, Point, Sweep, is_finished
from trainer.tracking.mlflow_sink import EndStatus
from trainer.tracking.parent import ParentRun
from trainer.tracking.status import read_status
from trainer.tracking.sync import flatten


@dataclass(frozen=True, kw_only=True)
class Screen(Generic[P]):
    """What is particular to one kind of study.

    Attributes:
        name: of the kind.
        params: what of the command line belongs to the study alone.
        artifacts: the files that it ends with.
        describe: a finished training in one line.
        report: writes the files and prints what the finished trainings came to.
        goes_on: whether a training that fails leaves the others to be trained; the study fails all the same.
        trains: whether to train at all.
    """

    name: str
    params: Mapping[str, object]
    artifacts: tuple[Path, ...]
    describe: Callable[[P], str]
    report: Callable[[Sequence[P], Console], None]
    goes_on: bool = False
    trains: bool = True


def ranks_of_runs(nproc: int | None) -> int:
    """How many ranks each training has.

    Raises:
        ConfigError: this process is itself a rank, or there are fewer GPUs.
    """
    if is_rank(os.environ):
        raise ConfigError("a study starts the ranks of its runs: start it without torchrun or srun, with --nproc")
    ranks = local.world_size(nproc)
    speak_plainly(0)
    return ranks


def carry_out(sweep: Sweep[P], screen: Screen[P], ranks: int) -> int:
    """Train what is not trained yet, then report; returns the exit code of `reste study`.

    Raises:
        UserError: the study cannot begin, or a training failed (with the exit code of the first that did).
    """
    missing = [point for point in sweep.points if not is_finished(sweep, point)]
    if screen.trains:
        for config in {c.data.model_dump_json(): c for c in map(sweep.configuration, sweep.points)}.values():
            open_datasets(config)  # so that data that is missing or damaged leaves nothing behind
    elif len(missing) == len(sweep.points):
        raise ConfigError(f"no run in {sweep.directory} is finished: there is nothing to report")
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{count(len(sweep.points), 'run')}, {len(missing)} to train; files in {sweep.directory}", markup=False
    )
    parent = create_parent(sweep, screen) if sweep.config.tracking.enabled else None
    status: EndStatus = "FAILED"
    try:
        run_id = None if parent is None else parent.begin()
        if screen.trains and not train_all(sweep, screen, missing, run_id, ranks, console):
            status = "KILLED"
            return EXIT_STOPPED
        status = finish(sweep, screen, console)
    finally:
        if parent is not None:
            parent.end(status, sweep.folders)
    return EXIT_FINISHED


def create_parent(sweep: Sweep[P], screen: Screen[P]) -> ParentRun:
    """The MLflow run of the whole study."""
    return ParentRun(
        sweep.directory,
        uri=sweep.uri,
        experiment=sweep.config.tracking.experiment,
        params=flatten({**sweep.config.model_dump(mode="json"), "study": screen.params}),
        tags={"study": screen.name},
        artifacts=screen.artifacts,
    )


def train_all(
    sweep: Sweep[P], screen: Screen[P], missing: list[P], parent: str | None, ranks: int, console: Console
) -> bool:
    """Train one after the other, with the steps of all of them as progress; False if a signal has ended that.

    Raises:
        UserError: a training failed; where the screen goes on, once the others are trained and reported.
    """
    children = Children()
    failed: list[tuple[P, UserError]] = []
    with progress(f"{screen.name}, steps") as advance, children.listening():
        for done, point in enumerate(missing):
            arguments = ["train", str(sweep.path), *sweep.overrides(point), "--nproc", str(ranks)]
            if parent is not None:
                arguments.append(f'tracking.parent="{parent}"')  # quoted: an id of digits alone is text too
            log = sweep.directory / "logs" / f"{point.name}.txt"
            code = children.run(arguments, log, watch(sweep.folder(point), done, len(missing), advance))
            if children.stopped or code == EXIT_STOPPED:
                console.print("stopped on request: start the same command again to go on")
                return False
            if code == EXIT_FINISHED:
                console.print(screen.describe(point), markup=False)
                continue
            failed.append((point, failure(point, code, log)))
            if not screen.goes_on:
                break
            console.print(redact(f"{failed[-1][1]}\n  alone: {shlex.join(['reste', *arguments])}"), markup=False)
    if failed and screen.goes_on:
        finish(sweep, screen, console)
    if failed:
        raise first_of(failed, screen)
    return True


def finish(sweep: Sweep[P], screen: Screen[P], console: Console) -> EndStatus:
    """Report the trainings that are finished, if any; how the study ended with them."""
    finished = [point for point in sweep.points if is_finished(sweep, point)]
    if finished:
        screen.report(finished, console)
    return "FINISHED" if len(finished) == len(sweep.points) else "KILLED"


def first_of(failed: Sequence[tuple[P, UserError]], screen: Screen[P]) -> UserError:
    """One line for all that failed, with the exit code of the first."""
    error = failed[0][1]
    if screen.goes_on:
        names = ", ".join(point.name for point, _ in failed)
        told = f"{count(len(failed), 'run')} failed: {names}; start the same command again to train what is missing"
        code, error = error.exit_code, UserError(f"{told}. {error}")
        error.exit_code = code
    return error


def watch(folder: Path, done: int, runs: int, advance: Callable[[int, int], None]) -> Callable[[], None]:
    """A function that shows how far the run in `folder` is, with `done` of `runs` runs behind it."""
    started = time.time()

    def look() -> None:
        status = read_status(folder)
        if status is not None and status.time >= started:
            advance(done * status.total_steps + status.step, runs * status.total_steps)

    return look


def failure(point: Point, code: int, log: Path) -> UserError:
    """One line for a training that failed: its own, if it had one."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    ended = f"was killed by signal {-code}; start again to go on" if code < 0 else f"ended with exit code {code}"
    error = UserError(f"run {point.name}: {told[-1] if told else ended} (its output: {log})")
    error.exit_code = code if code > 0 else EXIT_BUG
    return error


def spread(values: Sequence[float], form: str = ".4g") -> str:
    """Mean, and standard deviation if there are several."""
    mean = format(fmean(values), form)
    return mean if len(values) < 2 else f"{mean} +- {format(stdev(values), form)}"


def count(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
