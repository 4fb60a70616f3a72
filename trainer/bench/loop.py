"""The trainer around its step: its loop against a bare one, files against made-up images, a probe's cost."""

from __future__ import annotations

import importlib
import io
import itertools
import math
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

import models  # noqa: F401  (registers the names)
from trainer.assembly import build
from trainer.bench.core import WARM_UP, Bench, Goal, Row, Work, ratio
from trainer.bench.loaders import torchvision_loader
from trainer.bench.naive import make_naive
from trainer.bench.networks import DENSE
from trainer.bench.photographs import write_photographs
from trainer.config import load_config
from trainer.data.prepare.digits import prepare_digits
from trainer.events import log_indicators, log_training
from trainer.feed import Feed
from trainer.loop import train_step
from trainer.run import Plan, Run

FOREVER = ("train.epochs=1000000", "log.print_s=1000000", "tracking.enabled=false", "estimator.schedule=constant")
"""Longer than anybody measures, at one power."""
LARGE = "resnet18_1w1a"
WANTED = 12_000
"""Images a second of a GPU, with which eight of them train the paper's 250 epochs in about an hour."""
SMALL = ("model.name=resnet20_1w1a", "data.image_size=32", "data.synthetic.classes=10", "augment.crop=pad")


def loop_rows(bench: Bench) -> Iterator[Row]:
    """Chunks of the trainer's steps, with what its loop does around them, and of a bare loop's, on made-up images.

    ResNet-18 at 224 pixels, both sides compiled, in the machine's precision; and without a goal ResNet-20 at 32 pixels,
    both sides eager, whose step is so short that all around it weighs most. Then how even the trainer's steps are, of
    ResNet-18 on a GPU and of ResNet-20 elsewhere.
    """
    if not bench.quick:
        batch, chunk = (256, 20) if bench.is_cuda else (32, 3)
        yield _loop_row(bench, LARGE, large(bench), batch, chunk, compiled=True, goal=Goal(0.97, 0.99))
    yield _loop_row(bench, "resnet20_1w1a", SMALL, 32, 2 if bench.quick else 20, compiled=False)
    yield _evenness_row(bench)


def large(bench: Bench) -> tuple[str, ...]:
    """ResNet-18 as it is trained: 224 pixels, compiled, in the machine's precision."""
    precision = "fp32" if bench.dtype is None else bench.precision
    return f"model.name={LARGE}", "data.image_size=224", f"train.precision={precision}", "train.compile=true"


def _loop_row(
    bench: Bench,
    name: str,
    overrides: tuple[str, ...],
    batch: int,
    chunk: int,
    *,
    compiled: bool,
    goal: Goal | None = None,
) -> Row:
    with trainer("data.loader=synthetic", f"train.batch_size={batch}", *overrides) as run:
        first = run.feed.take()
        if bench.is_cuda:
            # As a decoder there leaves it.
            first = replace(first, images=first.images.to(bench.device))
            run.feed = Feed(itertools.repeat(first), run.pulse)
        # The bare loop keeps its batch at hand, so that only the trainer pays for its loader.
        images, labels = run.pixels(first)
        model = timm.create_model(name, estimator="reste", num_classes=run.config.data.synthetic.classes)
        model = model.to(bench.device, memory_format=torch.channels_last)
        forward = torch.compile(model, dynamic=False) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, fused=True)

        def bare() -> None:
            for _ in range(chunk):
                with bench.autocast() if compiled else nullcontext():
                    logits = forward(images)
                F.cross_entropy(logits.float(), labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        times = bench.race({"trainer": steps_of(run, chunk), "bare": bare})
    precision = f"{bench.precision}, compiled" if compiled else "float32, eager"
    where = f"{name}, {run.config.data.image_size} px, batch {batch}, {precision}"
    return ratio("loop", "rate, the trainer's loop over a bare one", where, times["trainer"], times["bare"], goal)


def _evenness_row(bench: Bench) -> Row:
    """Every step waited for: what makes one late (the host, the allocator, another program) is no other step's."""
    big = bench.is_cuda and not bench.quick
    name, overrides, batch = (LARGE, large(bench), 256) if big else ("resnet20_1w1a", SMALL, 32)
    steps = 2 if bench.quick else 100
    slow, usual = [], []
    with trainer("data.loader=synthetic", f"train.batch_size={batch}", *overrides) as run:
        step = steps_of(run, 1)
        for number in range(WARM_UP + bench.repeats):
            times = sorted(bench.milliseconds(step) for _ in range(steps))
            if number >= WARM_UP:
                slow.append(times[math.ceil(0.99 * steps) - 1])
                usual.append(statistics.median(times))
        size = run.config.data.image_size
    where = f"{name}, {size} px, batch {batch}, {steps} steps of the trainer's loop, each logged"
    goal = Goal(1.1, 1.05, "lower") if bench.is_cuda else None
    return ratio("loop", "time of a step, 99th percentile / median", where, slow, usual, goal, better="lower")


def trainer_rows(bench: Bench) -> Iterator[Row]:
    """Whole training on the digits, read from files by our loader: binary, dense; and naive, read by a DataLoader."""
    chunk, batch = (1, 8) if bench.quick else (10, 64)
    loader = f"data.loader={file_loader()}"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as runs:
        root = Path(folder) / "digits"
        prepare_digits(root)
        ours = (*SMALL, f"data.root={root}", f"train.batch_size={batch}", "data.workers=1", "data.prefetch=3", loader)
        bits = tuple(f"model.{name}={count}" for name, count in DENSE.items())
        binary = runs.enter_context(trainer(*ours))
        dense = runs.enter_context(trainer(*ours, *bits))
        naive = naive_loop(root, batch, chunk, bench.device)
        ways = {"binary": steps_of(binary, chunk), "dense": steps_of(dense, chunk), "naive": naive}
        times = bench.race(ways, lead=True)
    where = f"resnet20 on digits, 32 px, batch {batch}, {binary.config.data.loader} loader"
    yield ratio("trainer", "rate, binary over dense", where, times["binary"], times["dense"])
    yield ratio("trainer", "rate, binary over a naive loop", where, times["binary"], times["naive"])


def input_rows(bench: Bench) -> Iterator[Row]:
    """Training ResNet-18 at 224 pixels, its images decoded from files, or made up; the rate that a day's plan needs."""
    batch, chunk, count = (8, 1, 16) if bench.quick else (256, 40, 4096) if bench.is_cuda else (32, 4, 512)
    network = SMALL if bench.quick else large(bench)
    common = (f"train.batch_size={batch}", *network)
    dense = tuple(f"model.{name}={bits}" for name, bits in DENSE.items())
    loader = file_loader()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as runs:
        root = Path(folder) / "photographs"
        write_photographs(root, count)
        files = ("augment.crop=rrc", f"data.root={root}", f"data.loader={loader}")
        made_up = (*common, "data.loader=synthetic", "data.synthetic.classes=1000")
        sides = {"files": (*common, *files), "made up": made_up, "dense": (*made_up, *dense)}
        started = {name: runs.enter_context(trainer(*overrides)) for name, overrides in sides.items()}
        times = bench.race({name: steps_of(run, chunk) for name, run in started.items()}, lead=True)
        config = started["files"].config
    where = f"{config.model.name}, {config.data.image_size} px, batch {batch}, {bench.precision}"
    photographs = f"{where}, {count} JPEGs of 500 x 375, {loader} loader"
    goal = Goal(0.85, 0.95) if bench.is_cuda else None
    what = "rate, images from files over made up"
    yield ratio("input", what, photographs, times["files"], times["made up"], goal)
    goal = Goal(0.9, 1.0) if bench.is_cuda else None
    yield ratio("input", "rate, binary over dense, made-up images", where, times["made up"], times["dense"], goal)
    if bench.is_cuda:
        for name in ("dense", "made up"):
            wanted = [1e3 * chunk * batch / WANTED] * bench.repeats
            what = f"rate over {WANTED:,} images/s, {'dense' if name == 'dense' else 'binary'}"
            yield ratio("input", what, where, times[name], wanted, Goal(1.0, 1.25))


def file_loader() -> str:
    """`data.loader` for files, as it can be had here."""
    try:
        importlib.import_module("nvidia.dali")
    except ImportError:
        return "torchvision"
    return "dali"


def indicator_rows(bench: Bench) -> Iterator[Row]:
    """A step with a probe of all indicators, its host read and its journal line, and a step without.

    A ratio r is a cost of (r - 1) / 100 of the training at the default of one probe in 100 steps.
    """
    batch = 4 if bench.quick else 128
    with trainer("data.loader=synthetic", f"train.batch_size={batch}", *SMALL) as run:
        unprobed = replace(run.plan, indicators_every=0)

        def step(plan: Plan) -> None:
            run.plan = plan
            indicators = train_step(run)
            run.state.step += 1
            if indicators:
                log_indicators(run, indicators)

        probed = replace(unprobed, indicators_every=1)
        times = bench.race({"with": lambda: step(probed), "without": lambda: step(unprobed)})
    where = f"resnet20, 32 px, batch {batch}"
    yield ratio(
        "indicators",
        "time of a step with a probe / without",
        where,
        times["with"],
        times["without"],
        Goal(2.0, 1.5, "lower"),
    )


@contextmanager
def trainer(*overrides: str) -> Iterator[Run]:
    """An assembled run in a folder that goes when it does; what it has to say goes nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(io.StringIO()):
            run = build(load_config(None, [*FOREVER, f"run.dir={folder}", *overrides]))
        try:
            yield run
        finally:
            run.recorder.abandon()
            run.close()


def steps_of(run: Run, chunk: int) -> Work:
    """So many steps of a run, with what the trainer's loop does around them."""

    def work() -> None:
        for _ in range(chunk):
            train_step(run)
            run.state.step += 1
            run.recorder.tick(run.state.step)
            run.stopper.agreed(run.state.step)
        log_training(run)

    return work


def naive_loop(root: Path, batch: int, chunk: int, device: torch.device) -> Work:
    """So many steps of the naive network, its images from a DataLoader."""
    torch.manual_seed(0)
    model = make_naive(timm.create_model("resnet20_1w1a", estimator="reste", num_classes=10)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    loader = torchvision_loader(root, batch, as_float=True, size=32)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def work() -> None:
        for _ in range(chunk):
            images, labels = (tensor.to(device) for tensor in next(batches))
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return work
