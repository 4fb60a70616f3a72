"""Checks of the data: the same index on all ranks, and ten images of it decoded by both loaders."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch

from trainer.config import Config
from trainer.data import datasets
from trainer.data.batch import Loader
from trainer.data.faults import file_fault
from trainer.data.geometry import eval_geometry
from trainer.data.index import Index
from trainer.data.order import Plan
from trainer.data.storage import open_storage
from trainer.doctor.check import ByRank, Check, Context, Facts, Problem, unlike_the_first
from trainer.errors import DataError

IMAGES = 10
MOST_APART = 4.0
"""Mean difference of two loaders' pixels, of 255. On a CPU 0.1 is usual; GPUs decode a little differently."""


def look_at_index(context: Context) -> Facts:
    """Read both splits."""
    data = context.data
    return {"digest": data.digest, "train": len(data.train), "val": len(data.val), "classes": len(data.classes)}


def judge_index(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """The same on all ranks."""
    first = facts[min(facts)]
    result = f"{first['train']:,} + {first['val']:,} images, {first['classes']} classes, digest {first['digest'][:12]}"
    unlike = unlike_the_first(facts, "digest")
    if not unlike:
        return result, []
    other = facts[unlike[0]]
    what = (
        f"{config.data.root} holds other data than rank {min(facts)}'s: digest {other['digest'][:12]} "
        f"({other['train']:,} + {other['val']:,} images) instead of {first['digest'][:12]}"
    )
    fix = "copy one data set, with its index, to all machines, or share it"
    return result, [Problem(unlike, what, fix, exit_code=DataError.exit_code)]


def look_at_images(context: Context) -> Facts:
    """Ten images spread over the training split: bytes as indexed, decoded by the configured loader and by Pillow.

    Raises:
        DataError: a file cannot be read or decoded, or is not what was indexed.
    """
    config, index = context.config, context.data.train
    if config.data.loader == "synthetic":
        return {"images": 0, "apart": 0.0}
    plan = plan_of(index, np.unique(np.linspace(0, len(index) - 1, IMAGES).astype(np.int64)), config)
    check_bytes(index, config, plan, context.rank)
    on = context.device.index if context.device.type == "cuda" else None
    pixels = decode(config, config.data.loader, index, plan, rank=context.rank, device_id=on)
    reference = decode(config, "torchvision", index, plan, rank=context.rank, device_id=None)
    apart = (pixels.float() - reference.float()).abs().mean(dim=(1, 2, 3))
    worst = int(apart.argmax())
    if float(apart[worst]) > MOST_APART:
        storage = open_storage(index, Path(config.data.root))
        raise DataError(
            f"{storage.where(int(plan.ids[worst]))} has other pixels by {config.data.loader} than by Pillow, "
            f"{float(apart[worst]):.1f} of 255 apart: set data.loader=torchvision"
        )
    return {"images": len(plan.ids), "apart": float(apart.mean())}


def plan_of(index: Index, ids: np.ndarray, config: Config) -> Plan:
    """The evaluation's view of some samples."""
    heights, widths = index.heights[ids].astype(np.int64), index.widths[ids].astype(np.int64)
    return Plan(
        epoch=0,
        step=0,
        micro=0,
        ids=ids,
        labels=index.labels[ids],
        heights=heights,
        widths=widths,
        geometry=eval_geometry(datasets.augment(config), heights, widths),
        flips=np.zeros(len(ids), dtype=np.bool_),
        global_count=len(ids),
        global_batch_count=len(ids),
    )


def check_bytes(index: Index, config: Config, plan: Plan, rank: int) -> None:
    """Compare the samples' bytes with the index's checksums.

    Raises:
        DataError: naming the first that differs or cannot be read.
    """
    storage = open_storage(index, Path(config.data.root))
    try:
        for sample in map(int, plan.ids):
            try:
                content = storage.read(sample)
            except OSError as error:
                raise file_fault(index, storage, sample, rank=rank, reason=error.strerror or str(error)) from error
            if zlib.crc32(content) != index.crc32[sample]:
                raise file_fault(index, storage, sample, rank=rank, reason="its checksum is not the index's")
    finally:
        storage.close()


def decode(config: Config, loader: str, index: Index, plan: Plan, *, rank: int, device_id: int | None) -> torch.Tensor:
    """Pixels of a plan on the CPU, uint8 (B, S, S, 3), by one loader.

    Raises:
        DataError: an image cannot be decoded, or the pixels have another shape or type.
    """
    root, count, size = Path(config.data.root), len(plan.ids), config.data.image_size
    made: Loader
    if loader == "dali":
        from trainer.data.dali import DaliLoader

        made = DaliLoader(
            index, root, image_size=size, kind="resize", max_batch=count, workers=1, rank=rank, device_id=device_id
        )
    else:
        from trainer.data.torchvision import TorchvisionLoader

        made = TorchvisionLoader(index, root, image_size=size, kind="resize", max_batch=count, workers=1, rank=rank)
    try:
        pixels = next(made.load([plan])).images.cpu()
    finally:
        made.close()
    if pixels.shape != (count, size, size, 3) or pixels.dtype != torch.uint8:
        raise DataError(
            f"{loader} made pixels of {tuple(pixels.shape)} {pixels.dtype} instead of {(count, size, size, 3)} uint8: "
            "install the versions of constraints.txt"
        )
    return pixels


def judge_images(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Bad images have raised; here is only something to report."""
    count = min(fact["images"] for fact in facts.values())
    if count == 0:
        return "made up, nothing to decode", []
    apart = max(fact["apart"] for fact in facts.values())
    return f"{count} decoded on each rank by {config.data.loader}, {apart:.2f} of 255 from Pillow's", []


_MOUNTED = "does ls of data.root answer on this machine? If not, its file system hangs"
INDEX = Check("data set", look_at_index, judge_index, _MOUNTED, 120.0)
IMAGES_DECODED = Check("images", look_at_images, judge_images, _MOUNTED, 120.0, needs=("data set", "devices"))
