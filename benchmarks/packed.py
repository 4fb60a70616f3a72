"""A packed network on the CPU against the same network dense in onnxruntime, float32: each layer and the whole.

python benchmarks/packed.py --record benchmarks/records/packed.json

A layer is everything from its sign to its shortcut: sign, convolution, scale, ReLU, batch norm, sum. onnxruntime gets
it with +-1 as float32 weights and all its optimisations. Both run in turn in every round; the ratio is onnxruntime's
time over ours.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from torch import Tensor, nn

import models  # noqa: F401  (registers the names)
from models.binarization import Binarization
from trainer.bench.core import Row, ratio
from trainer.export.native import NativeNet
from trainer.export.onnx_file import as_onnx, run_onnx
from trainer.export.packed import pack
from trainer.export.program import Deployed
from trainer.tracking.manifest import build_manifest

# Channels in and out, pixels along a side, stride: the binary convolutions of a ResNet-18 at 224 pixels.
LAYERS = (
    (64, 64, 56, 1),
    (64, 128, 56, 2),
    (128, 128, 28, 1),
    (128, 256, 28, 2),
    (256, 256, 14, 1),
    (256, 512, 14, 2),
    (512, 512, 7, 1),
)
NETWORKS = (("resnet18_1w1a", 1000, 224), ("resnet20_1w1a", 10, 32), ("vgg_small_1w1a", 10, 32))
SETTLE_S = 0.05
"""Pause before each measurement: threads of the one before spin for a while."""


class Layer(nn.Module):
    """A binary convolution with what follows it in a Bi-Real block."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = Binarization()(channels, outputs, stride)
        self.act = nn.ReLU()
        self.bn = nn.BatchNorm2d(outputs)
        self.has_shortcut = stride == 1 and channels == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        y = self.bn(self.act(self.conv(x)))
        return y + x if self.has_shortcut else y


def facts(name: str, classes: int, side: int) -> Deployed:
    """Of an untrained network."""
    return Deployed(
        labels=[str(label) for label in range(classes)],
        named=0,
        image_size=side,
        resize=side,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        dtype="float32",
        channels_last=True,
        precision="fp32",
        model=name,
        weight_bits=1,
        activation_bits=1,
        weights="model",
        step=0,
        config_digest=None,
        data_digest=None,
        world_size=None,
        metrics={},
    )


@dataclass(frozen=True)
class Course:
    """How often, on how many threads, and by which clock."""

    repeats: int
    threads: list[int]
    clock: Callable[[], float]


def milliseconds(work: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Of one call, after a pause and a call that is not counted."""
    time.sleep(SETTLE_S)
    work()
    begun = clock()
    for _ in range(calls):
        work()
    return 1e3 * (clock() - begun) / calls


def race(name: str, model: nn.Module, about: Deployed, images: Tensor, course: Course) -> list[Row]:
    """Rows of one network for each number of threads."""
    model = model.eval().to(memory_format=torch.channels_last)
    content = as_onnx(model, tuple(images.shape[1:])).SerializeToString()
    net = NativeNet(pack(model, about))
    laid = images.contiguous(memory_format=torch.channels_last)
    rows = []
    for number in course.threads:
        torch.set_num_threads(number)
        dense = run_onnx(content, threads=number)
        # A value on the edge of a sign may fall to either side, so that single logits differ.
        gap = (net(laid) - dense(images)).abs()
        assert gap.median() <= 1e-3, gap.max()
        times: dict[str, list[float]] = {"ours": [], "other": []}
        works = {"ours": partial(net, laid), "other": partial(dense, images)}
        calls = {side: max(1, round(20 / milliseconds(work, 1, course.clock))) for side, work in works.items()}
        for turn in range(course.repeats):
            for side in sorted(works, reverse=bool(turn % 2)):
                times[side].append(milliseconds(works[side], calls[side], course.clock))
        rows.append(ratio("packed", name, f"{number} threads, batch {len(images)}", times["ours"], times["other"]))
        row = rows[-1]
        print(
            f"{name}, {row.where}: {row.ours:.3f} ms against {row.other:.3f} ms, "
            f"{row.median:.1f} times ({row.lowest:.1f} to {row.highest:.1f})",
            flush=True,
        )
    return rows


def main(
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 9,
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    processor: Annotated[
        bool, typer.Option("--processor", help="Processors' time, for machines that others use too.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One small layer: to see that it runs.")] = False,
) -> None:
    """Race every layer, then every network."""
    torch.manual_seed(0)
    numbers = [int(number) for number in threads.split(",")]
    course = Course(repeats, numbers, time.process_time if processor else time.perf_counter)
    rows: list[Row] = []
    for channels, outputs, side, stride in ((16, 16, 8, 1),) if quick else LAYERS:
        name = f"{channels} to {outputs} channels, {side} px, stride {stride}"
        layer = Layer(channels, outputs, stride)
        rows += race(name, layer, facts("layer", outputs, side), torch.randn(1, channels, side, side), course)
    for name, classes, side in () if quick else NETWORKS:
        model = timm.create_model(name, num_classes=classes)
        rows += race(name, model, facts(name, classes, side), torch.randn(1, 3, side, side), course)
    if record is None:
        return
    manifest = build_manifest(seed=0, config_digest="", data_digest="", world_size=1)
    written: dict[str, Any] = {
        "what": "a packed network on the CPU against the same network dense in onnxruntime, float32; milliseconds",
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {key: manifest["machine"][key] for key in ("platform", "cpu", "cpus", "gpus")},
        "code": manifest["code"],
        "versions": manifest["versions"] | _versions(),
        "clock": "processors' time" if processor else "wall",
        "repeats": repeats,
        "rows": [
            {"what": row.what, "where": row.where, "ours_ms": row.ours, "onnxruntime_ms": row.other}
            | {"ratio": row.median, "lowest": row.lowest, "highest": row.highest}
            for row in rows
        ],
    }
    record.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


if __name__ == "__main__":
    typer.run(main)
