"""How long the step loop stands still for a checkpoint: written by a thread as the trainer does, and written in line.

python benchmarks/save_stall.py --record benchmarks/records/save_stall.json

Both save the same weights and SGD momentum into the same folder, in turn. Steps of the network at a small batch are
timed while the thread writes and while it does not, for what writing costs them.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from torch import nn

import models  # noqa: F401  (registers the names)
from trainer import checkpoint, checkpoints
from trainer.checkpoint import Progress
from trainer.saver import Saver
from trainer.tracking.manifest import build_manifest

KEEP = 2
STEPS = 3


class Training:
    """A network with momentum, and what a run saves of it."""

    def __init__(self, name: str, device: torch.device, batch: int, size: int) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(name).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.images = torch.randn(batch, 3, size, size, device=device)
        self.labels = torch.zeros(batch, dtype=torch.int64, device=device)
        self.done = 0
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()
        self.done += 1
        if self.images.is_cuda:
            torch.cuda.synchronize()

    def payloads(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "engine": {"optimizer": self.optimizer.state_dict()}}

    def facts(self) -> dict[str, Any]:
        progress = Progress(self.done, 0, 0.0, {}, {}, None, 0, [])
        return {"progress": progress, "config_yaml": "seed: 0\n", "about": {}}


def in_line(training: Training, folder: Path) -> None:
    """What the step loop did before there was a thread."""
    checkpoint.save(folder, training.payloads(), **training.facts())
    checkpoints.prune(folder, KEEP)


def seconds(work: Callable[[], object]) -> float:
    """Of the wall clock."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(training: Training, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each save, and of each step with and without a thread that writes; the first repeat is left out."""
    saver = Saver(folder, keep=KEEP)
    found: dict[str, list[float]] = {"thread": [], "in_line": [], "written": [], "step": [], "step_beside_writing": []}
    for _ in range(repeats + 1):
        training.step()
        started = time.perf_counter()
        found["thread"].append(seconds(lambda: saver.save(training.payloads(), **training.facts(), best=False)))
        beside = [seconds(training.step)]
        saver.finish()
        found["written"].append(time.perf_counter() - started)
        found["step_beside_writing"] += beside
        found["step"] += [seconds(training.step) for _ in range(STEPS)]
        found["in_line"].append(seconds(lambda: in_line(training, folder)))
    saver.close()
    return {name: values[len(values) // (repeats + 1) :] for name, values in found.items()}


def main(
    model: Annotated[str, typer.Option(help="A model name.")] = "resnet18_1w1a",
    repeats: Annotated[int, typer.Option(min=1)] = 9,
    batch: Annotated[int, typer.Option(min=2, help="Images of the steps beside which is written.")] = 4,
    size: Annotated[int, typer.Option(min=32, help="Their pixels.")] = 64,
    folder: Annotated[Path | None, typer.Option(help="Where to save; a temporary folder by default.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Measure and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = Training(model, device, batch, size)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        found = measure(training, Path(place), repeats)
        size_mib = sum(file.stat().st_size for file in checkpoints.steps(Path(place))[-1].iterdir()) / 2**20
    rows = {
        name: {"median_ms": 1e3 * statistics.median(v), "lowest_ms": 1e3 * min(v), "highest_ms": 1e3 * max(v)}
        for name, v in found.items()
    }
    print(f"{model}, SGD with momentum, {size_mib:.1f} MiB a checkpoint, {device.type}, {repeats} repeats in turn")
    for name, row in rows.items():
        print(f"{name:<20} {row['median_ms']:8.1f} ms   {row['lowest_ms']:8.1f} .. {row['highest_ms']:.1f}")
    if record is None:
        return
    manifest = build_manifest(seed=0, config_digest="", data_digest="", world_size=1)
    written = {
        "what": "wall time for which the step loop stands still for a save: by a thread, and in line; interleaved",
        "command": shlex.join(["python", "benchmarks/save_stall.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {key: manifest["machine"][key] for key in ("cpu", "cpus", "gpus")},
        "threads": torch.get_num_threads(),
        "versions": manifest["versions"],
        "code": manifest["code"],
        "model": model,
        "checkpoint_mib": size_mib,
        "repeats": repeats,
        "rows": rows,
    }
    record.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
