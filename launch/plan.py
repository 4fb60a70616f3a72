"""`reste plan`: a table, or one JSON object, of what a training would take on other numbers of devices."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.plan_options import Measured, batch_sizes, counts
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.plan.predict import Assumptions, Prediction, Workload, needed_rate, predict
from trainer.plan.workload import Data, describe_data, statistics_group, with_batch, workload
from trainer.stages import load_training

_WIDTH = 100


@dataclass(frozen=True)
class Batch:
    """The predictions for one global batch.

    Attributes:
        work: what is computed.
        predictions: by number of devices, ascending.
        within_s: the wanted length of a run.
        needed: images per second that one device must reach alone for the fewest devices to make that.
    """

    work: Workload
    predictions: list[Prediction]
    within_s: float
    needed: float | None

    @property
    def possible(self) -> list[Prediction]:
        """Those that the trainer would not refuse."""
        return [found for found in self.predictions if found.refused is None]

    @property
    def in_time(self) -> list[Prediction]:
        """Those that end in time."""
        return [found for found in self.possible if found.run_s <= self.within_s]


@dataclass(frozen=True)
class Part:
    """A run, or one stage of a training of several.

    Attributes:
        name: of the stage; empty for a run.
        config: what is trained.
        data: what it is trained on.
        batches: the predictions, for each global batch.
    """

    name: str
    config: Config
    data: Data
    batches: list[Batch]


def predict_batch(
    config: Config, work: Workload, measured: Measured, given: Assumptions, gpus: list[int], within_s: float
) -> Batch:
    """One prediction for each number of devices; those that the trainer would refuse say why."""
    found = []
    needed = None
    for count in gpus:
        try:
            group, notes = statistics_group(config, work, count, given.fabric.per_node)
        except ConfigError as error:
            found.append(Prediction(count, refused=str(error)))
            continue
        if all(other.refused is not None for other in found):
            needed = needed_rate(work, measured.rate, given, count, within_s, group)
        made = predict(work, measured.rate, given, count, group)
        made.notes.extend(notes)
        found.append(made)
    return Batch(work, found, within_s, needed)


def run(
    path: Path,
    overrides: list[str],
    *,
    gpus: str,
    batches: str | None,
    within_hours: float,
    measured: Measured,
    bytes_per_image: float | None,
    given: Assumptions,
    as_json: bool,
) -> None:
    """Print the predictions.

    Raises:
        ConfigError: something in the configuration or on the command line is wrong.
    """
    training = load_training(path, overrides)
    many, within_s = counts(gpus), 3600 * within_hours
    parts = []
    for name, config in [(stage.name, stage.config) for stage in training.stages] or [("", training.config)]:
        data = describe_data(config, bytes_per_image)
        # Each stage has a batch of its own; one beside it for all of them would be no training.
        sizes = batch_sizes(batches, config, data) if batches or not name else [config.train.batch_size]
        changed = [with_batch(config, size) for size in sizes]
        made = [predict_batch(c, workload(c, data), measured, given, many, within_s=within_s) for c in changed]
        parts.append(Part(name, config, data, made))
    if as_json:
        print(json.dumps(as_values(parts, measured, given)))
        return
    print_parts(path, parts, measured, given)
    for runs in together(parts) if training.stages else []:
        print_together(runs, within_s)


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    # A column that is cut off says nothing; lines of a narrow terminal wrap.
    console.width = max(console.width, _WIDTH)
    return console


def print_parts(path: Path, parts: list[Part], measured: Measured, given: Assumptions) -> None:
    """What is assumed and the tables, run by run; what holds for several is told once."""
    console = _console()
    said: set[str] = set()
    for number, part in enumerate(parts, 1):
        stage = f"stage {number} of {len(parts)}, {part.name}: " if part.name else ""
        told = f"{part.data.train:,} images, {part.config.train.epochs} epochs"
        console.print(f"{stage}{part.config.model.name} of {path}, {told}", markup=False)
        for line in believed(part.config, measured, given, part.data):
            if line not in said:
                console.print(f"  {line}", markup=False)
            said.add(line)
        for batch in part.batches:
            print_batch(console, batch, measured, whole=not part.name)


def together(parts: list[Part]) -> list[list[Prediction]]:
    """The runs of all stages as one, for each wanted batch; refused where one of them is."""
    wholes = []
    for batches in zip(*(part.batches for part in parts), strict=True):
        whole = []
        for found in zip(*(batch.predictions for batch in batches), strict=True):
            refused = [f"stage {p.name}: {f.refused}" for p, f in zip(parts, found, strict=True) if f.refused]
            whole.append(
                Prediction(found[0].gpus, refused=refused[0])
                if refused
                else Prediction(
                    found[0].gpus,
                    run_s=sum(f.run_s for f in found),
                    cost=None if found[0].cost is None else sum(f.cost or 0.0 for f in found),
                )
            )
        wholes.append(whole)
    return wholes


def as_values(parts: list[Part], measured: Measured, given: Assumptions) -> dict[str, Any]:
    """Everything as JSON; seconds, bytes and images. Stages stand in a list, with their sums in `whole`."""
    common = {
        "rate": {"source": measured.source, "points": measured.rate.points, "fixed_s": measured.rate.fixed_s},
        "assumptions": asdict(given),
    }
    described = [{"data": part.data.source, "batches": [_values(batch) for batch in part.batches]} for part in parts]
    if not parts[0].name:
        return common | described[0]
    whole = [
        [{"gpus": f.gpus, "run_s": f.run_s, "cost": f.cost, "refused": f.refused} for f in runs]
        for runs in together(parts)
    ]
    stages = [{"name": part.name} | values for part, values in zip(parts, described, strict=True)]
    return common | {"stages": stages, "whole": whole}


def _values(batch: Batch) -> dict[str, Any]:
    return {
        "batch_size": batch.work.batch_size,
        "workload": asdict(batch.work),
        "predictions": [asdict(found) for found in batch.predictions],
        "within_s": batch.within_s,
        "in_time": [found.gpus for found in batch.in_time],
        "needed_images_per_s": batch.needed,
    }


def believed(config: Config, measured: Measured, given: Assumptions, data: Data) -> list[str]:
    """The assumptions in words."""
    fabric = given.fabric
    lines = [
        f"one device alone: {measured.source}; {1000 * measured.rate.fixed_s:.2g} ms of a step do not shrink",
        f"links: {fabric.inside.bytes_per_s / 1e9:g} GB/s and {1e6 * fabric.inside.latency_s:g} us in a node of "
        f"{fabric.per_node}, {fabric.between.bytes_per_s / 1e9:g} GB/s and {1e6 * fabric.between.latency_s:g} us "
        f"between nodes; all-reduce: {given.algorithm}; {1e6 * fabric.start_s:g} us more for every collective",
        f"gradients in buckets of {given.bucket_bytes / 2**20:g} MiB hide behind {100 * given.overlap:g} % of the "
        f"backward pass, which is {100 * (1 - given.forward_share):.0f} % of a step; batch statistics hide behind "
        "nothing",
        f"a file has {data.bytes_per_image:,.0f} bytes ({data.source}), each is read once an epoch; "
        + ("the loader keeps up" if given.loader_images_per_s is None else f"{given.loader_images_per_s:g} a second"),
        "left out: start, compilation, saves" + (", the teacher's answers" if config.distill.teacher else ""),
    ]
    if config.data.image_size_schedule:
        sizes, epochs = config.image_sizes, config.train.epochs
        lines.append(
            f"images grow, {sizes.words(epochs)}: an image of fewer pixels takes as much less time, its loading none; "
            f"step and epoch below are for {config.data.image_size} px, the run is as scheduled"
        )
    record = measured.record
    if record is not None:
        asked = (config.model.name, config.data.image_size, config.train.precision)
        have = (record.model, record.image_size, record.precision)
        if asked != have:
            lines.insert(1, f"beware: measured was {have}, the configuration says {asked}")
    return lines


def print_batch(console: Console, batch: Batch, measured: Measured, *, whole: bool) -> None:
    """The table of one global batch, what is to be said of its rows, and, of a whole run, whether it ends in time."""
    table = Table(title=f"\nglobal batch {batch.work.batch_size}", title_justify="left", box=None, pad_edge=False)
    names = ["GPUs", "each", "BN over", "images/s", "linear", "step ms", "waits ms", "epoch", "run", "GB/s", "cost"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for found in batch.predictions:
        table.add_row(*(cells(found, batch.work) if found.refused is None else [str(found.gpus), "-"]))
    console.print(table)
    _print_notes(console, batch.predictions)
    for line in in_time(batch, measured) if whole else []:
        console.print(f"  {line}", markup=False)


def print_together(runs: list[Prediction], within_s: float) -> None:
    """The table of all stages as one run, and which number of devices ends in time."""
    console = _console()
    table = Table(title="\nall stages", title_justify="left", box=None, pad_edge=False)
    for name in ("GPUs", "run", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    for found in runs:
        figures = [duration(found.run_s), "-" if found.cost is None else f"{found.cost:,.2f}"]
        table.add_row(str(found.gpus), *(figures if found.refused is None else ["-", "-"]))
    console.print(table)
    _print_notes(console, runs)
    console.print(
        f"  {_within([f for f in runs if f.refused is None and f.run_s <= within_s], within_s)}", markup=False
    )


def _print_notes(console: Console, predictions: list[Prediction]) -> None:
    said: dict[str, list[str]] = {}
    for found in predictions:
        for note in [f"refused: {found.refused}"] if found.refused else found.notes:
            said.setdefault(note, []).append(str(found.gpus))
    for note, gpus in said.items():
        console.print(f"  {', '.join(gpus)}: {note}", markup=False)


def _within(found: list[Prediction], within_s: float) -> str:
    if not found:
        return f"none of these ends within {duration(within_s)}"
    counts = ", ".join(f"{each.gpus} ({duration(each.run_s)})" for each in found)
    return f"within {duration(within_s)}: {counts}"


def cells(found: Prediction, work: Workload) -> list[str]:
    """One row."""
    waits_s = found.batchnorm_s + found.gradients_s + found.loader_s
    return [
        str(found.gpus),
        str(found.images),
        f"{work.micro_batch * found.group // found.gpus:,}",
        f"{found.images_per_s:,.0f}",
        f"{100 * found.efficiency:.0f} %",
        f"{1000 * found.step_s:.2f}",
        f"{1000 * waits_s:.2f}",
        duration(found.epoch_s),
        duration(found.run_s),
        f"{found.bytes_per_s / 1e9:.3g}",
        "-" if found.cost is None else f"{found.cost:,.2f}",
    ]


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.4g} h"


def in_time(batch: Batch, measured: Measured) -> list[str]:
    """On how many devices the run is short enough, and what it would take on the fewest."""
    if not batch.possible:
        return []
    fewest = batch.possible[0]
    lines = [_within(batch.in_time, batch.within_s)]
    if batch.needed is None:
        return [*lines, f"{fewest.gpus} cannot make that at any rate of one: communication or the loader takes longer"]
    return [
        *lines,
        f"{fewest.gpus} make that if one alone reaches {batch.needed:,.0f} images/s (taken: {measured.rate.best:,.0f})",
    ]
