"""The screens of `reste prepare`: a bar on a terminal, lines in a log, and what was found."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from trainer.data.index import Summary
from trainer.data.prepare.source import Expectation, Source
from trainer.data.prepare.store import Options

LINE_EVERY_S = 10.0
ODD_SHOWN = 10


def digits(root: Path) -> None:
    """Make the digits and say what is there."""
    from trainer.data.prepare.digits import prepare_digits

    with progress("digits") as advance:
        summary = prepare_digits(root, progress=advance)
    report(root, summary)


def folder(root: Path, *, val_labels: Path | None, workers: int | None, skip_bad: bool) -> None:
    """Index a folder tree and say what was found."""
    from trainer.data.prepare.folder import prepare_folder

    with progress("checking images") as advance:
        summary = prepare_folder(root, val_labels=val_labels, workers=workers, skip_bad=skip_bad, progress=advance)
    report(root, summary)


def imagenet(
    given: Path,
    root: Path,
    *,
    layout: str | None,
    form: str,
    max_side: int | None,
    expect: str,
    shard_mib: int,
    workers: int | None,
    skip_bad: bool,
) -> None:
    """Say which layout was found, store its images and say what they are."""
    from trainer.data.prepare.imagenet import IMAGENET, open_imagenet
    from trainer.data.prepare.store import Options

    expectation = IMAGENET if expect == "imagenet" else None
    source = open_imagenet(given, layout, expect=expectation)
    options = Options(form, max_side, workers, skip_bad, shard_mib << 20)
    _store(source, given, root, options, expectation)


def cifar10(given: Path, root: Path, *, form: str, expect: str, workers: int | None) -> None:
    """Store CIFAR-10 as PNG files and say what they are."""
    from trainer.data.prepare.cifar10 import CIFAR10, open_cifar10
    from trainer.data.prepare.store import Options

    expectation = CIFAR10 if expect == "cifar10" else None
    source = open_cifar10(given, expect=expectation)
    _store(source, given, root, Options(form, workers=workers), expectation)


def _store(source: Source, given: Path, root: Path, options: Options, expect: Expectation | None) -> None:
    from trainer.data.prepare.store import store

    print(f"reading {source.what}", file=sys.stderr, flush=True)
    with progress(f"preparing, {source.unit}") as advance:
        summary = store(source, given, root, options, expect=expect, progress=advance)
    report(root, summary)


def verify(root: Path, *, workers: int | None, as_json: bool) -> None:
    """Name everything that is damaged; raises if anything is."""
    from trainer.data.prepare.verify import refuse_damage, verify

    with progress("verifying images") as advance:
        verdict = verify(root, workers=workers, progress=advance)
    if as_json:
        print(json.dumps({"root": str(root), **asdict(verdict)}))
    else:
        for damage in verdict.damaged:
            print(damage)
        size = f"{verdict.images:,} images of {verdict.bytes / 2**20:,.1f} MiB"
        print(f"{root}: {size} read and decoded, {len(verdict.damaged)} places damaged")
    refuse_damage(root, verdict)


def report(root: Path, summary: Summary) -> None:
    """Counts, and the files that are odd or were left out."""
    console = Console(highlight=False, soft_wrap=True)
    sizes = ", ".join(f"{count:,} {split}" for split, count in summary.samples.items())
    console.print(
        f"{root}: {sizes} images in {len(summary.classes)} classes; every file decoded, index written",
        markup=False,
    )
    for title, files in (("left out", summary.quarantined), ("odd, but usable", summary.odd)):
        for file in files[:ODD_SHOWN]:
            console.print(f"  {title}: {file.path} ({file.what})", markup=False)
        if len(files) > ODD_SHOWN:
            console.print(
                f"  {title}: {len(files) - ODD_SHOWN} more, listed in {root / 'index' / 'index.json'}",
                markup=False,
            )


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, total): a bar with the time to go, or a line every ten seconds."""
    if sys.stderr.isatty():
        with _bar(what) as advance:
            yield advance
        return
    started = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S and done:
            last = now
            to_go = (now - started) / done * (total - done)
            print(f"{what}: {done:,} of {total:,}, {to_go:.0f} s to go", file=sys.stderr, flush=True)

    yield line


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
