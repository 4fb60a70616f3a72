"""`reste plan`: a table, or one JSON object, of what a training would take on other numbers of devices."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.plan_options import Measured, batch_sizes, counts
from trainer.config import Config, load_config
from trainer.errors import ConfigError
from trainer.plan.predict import Assumptions, Prediction, Workload, needed_rate, predict
from trainer.plan.workload import describe_data, statistics_group, with_batch, workload

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
    def in_time(self) -> Prediction | None:
        """The one of fewest devices that ends in time."""
        return next((found for found in self.possible if found.run_s <= self.within_s), None)


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
    config = load_config(path, overrides)
    many = counts(gpus)
    data = describe_data(config, bytes_per_image)
    found = []
    for size in batch_sizes(batches, config, data):
        changed = with_batch(config, size)
        work = workload(changed, data)
        found.append(predict_batch(changed, work, measured, given, many, within_s=3600 * within_hours))
    if as_json:
        print(json.dumps(as_values(found, measured, given, data.source)))
        return
    console = Console(highlight=False, soft_wrap=True)
    # A column that is cut off says nothing; lines of a narrow terminal wrap.
    console.width = max(console.width, _WIDTH)
    console.print(f"{config.model.name} of {path}, {data.train:,} images, {config.train.epochs} epochs", markup=False)
    for line in believed(config, measured, given, data.bytes_per_image, data.source):
        console.print(f"  {line}", markup=False)
    for batch in found:
        print_batch(console, batch, measured)


def as_values(batches: list[Batch], measured: Measured, given: Assumptions, source: str) -> dict[str, Any]:
    """Everything as JSON; seconds, bytes and images."""
    return {
        "rate": {"source": measured.source, "points": measured.rate.points, "fixed_s": measured.rate.fixed_s},
        "assumptions": asdict(given),
        "data": source,
        "batches": [
            {
                "batch_size": batch.work.batch_size,
                "workload": asdict(batch.work),
                "predictions": [asdict(found) for found in batch.predictions],
                "within_s": batch.within_s,
                "in_time": None if batch.in_time is None else batch.in_time.gpus,
                "needed_images_per_s": batch.needed,
            }
            for batch in batches
        ],
    }


def believed(config: Config, measured: Measured, given: Assumptions, mean: float, source: str) -> list[str]:
    """The assumptions in words."""
    fabric = given.fabric
    lines = [
        f"one device alone: {measured.source}; {1000 * measured.rate.fixed_s:.2g} ms of a step do not shrink",
        f"links: {fabric.inside.bytes_per_s / 1e9:g} GB/s and {1e6 * fabric.inside.latency_s:g} us in a node of "
        f"{fabric.per_node}, {fabric.between.bytes_per_s / 1e9:g} GB/s and {1e6 * fabric.between.latency_s:g} us "
        f"between nodes; all-reduce: {given.algorithm}",
        f"gradients in buckets of {given.bucket_bytes / 2**20:g} MiB hide behind {100 * given.overlap:g} % of the "
        f"backward pass, which is {100 * (1 - given.forward_share):.0f} % of a step; batch statistics hide behind "
        "nothing",
        f"a file has {mean:,.0f} bytes ({source}), each is read once an epoch; "
        + ("the loader keeps up" if given.loader_images_per_s is None else f"{given.loader_images_per_s:g} a second"),
        "left out: start, compilation, saves",
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


def print_batch(console: Console, batch: Batch, measured: Measured) -> None:
    """The table of one global batch, what is to be said of its rows, and whether a run ends in time."""
    table = Table(title=f"\nglobal batch {batch.work.batch_size}", title_justify="left", box=None, pad_edge=False)
    names = ["GPUs", "each", "BN over", "images/s", "linear", "step ms", "waits ms", "epoch", "run", "GB/s", "cost"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for found in batch.predictions:
        table.add_row(*(cells(found, batch.work) if found.refused is None else [str(found.gpus), "-"]))
    console.print(table)
    said: dict[str, list[str]] = {}
    for found in batch.predictions:
        for note in [f"refused: {found.refused}"] if found.refused else found.notes:
            said.setdefault(note, []).append(str(found.gpus))
    for note, gpus in said.items():
        console.print(f"  {', '.join(gpus)}: {note}", markup=False)
    for line in in_time(batch, measured):
        console.print(f"  {line}", markup=False)


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
    """From how many devices on the run is short enough, and what it would take on the fewest."""
    if not batch.possible:
        return []
    fewest, first = batch.possible[0], batch.in_time
    wanted = duration(batch.within_s)
    lines = [f"none of these ends within {wanted}"]
    if first is not None:
        lines = [f"within {wanted}: from {first.gpus} on ({duration(first.run_s)})"]
    if batch.needed is None:
        return [*lines, f"{fewest.gpus} cannot make that at any rate of one: communication or the loader takes longer"]
    return [
        *lines,
        f"{fewest.gpus} make that if one alone reaches {batch.needed:,.0f} images/s (taken: {measured.rate.best:,.0f})",
    ]
