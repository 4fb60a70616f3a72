"""Our loader against torchvision's DataLoader and against DALI itself, on photographs of ImageNet's sizes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from trainer.bench.bare_dali import bare_dali
from trainer.bench.core import Bench, Goal, Row, Work, ratio
from trainer.bench.photographs import write_photographs
from trainer.config_schema import AugmentConfig
from trainer.data.batch import Loader
from trainer.data.dali import DaliLoader
from trainer.data.index import load_index
from trainer.data.order import Augment, TrainOrder
from trainer.data.torchvision import TorchvisionLoader
from trainer.errors import ConfigError
from trainer.pixels import Pixels, mirrored

SIZE, WORKERS = 224, 2
AUGMENT = AugmentConfig()


def loader_rows(bench: Bench) -> Iterator[Row]:
    """One epoch at equal workers: floats ready to train on, uint8, and uint8 against DALI alone.

    All sides share as many cores as they have workers, for threads are counted differently: ours resizes in some
    beside those that decode.

    Raises:
        ConfigError: scikit-learn, whose photographs these are, is missing.
    """
    torch.set_num_threads(1)
    with cores(WORKERS):
        yield from _loader_rows(bench)


@contextmanager
def cores(count: int) -> Iterator[None]:
    """What is started here, threads and processes, runs on so many of this process's cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _loader_rows(bench: Bench) -> Iterator[Row]:
    count, batch = (16, 8) if bench.quick else (1024, 32)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root, count)
        index = load_index(root, "train")
        order = TrainOrder(index, Augment(SIZE), seed=0, batch_size=batch)
        device_id = bench.device.index or 0 if bench.is_cuda else None
        options: dict[str, Any] = {"image_size": SIZE, "kind": "window", "max_batch": batch, "workers": WORKERS}
        loader: Loader
        try:
            loader, name = DaliLoader(index, root, **options, device_id=device_id), "ours by DALI"
        except ConfigError:  # it is not for every machine
            loader, name = TorchvisionLoader(index, root, **options), "ours by Pillow"
        try:
            where = f"{name}, {count} JPEGs of 500 x 375 to {SIZE} px, {WORKERS} workers, as many cores"
            ours = _Ours(loader, order, bench.device)
            for kind, goal in (("float", Goal(1.5, 1.7)), ("uint8", Goal(1.1, 1.2))):
                theirs = torchvision_loader(root, batch, as_float=kind == "float")
                times = bench.race({"ours": getattr(ours, kind), "other": drain(theirs, bench.device)})
                what = f"rate over torchvision's DataLoader, {kind}"
                yield ratio("loader", what, where, times["ours"], times["other"], goal)
            if isinstance(loader, DaliLoader):
                plans = list(order.plans(0, order.steps_per_epoch))
                bare = bare_dali(index, root, plans, size=SIZE, workers=WORKERS, device_id=device_id)
                times = bench.race({"ours": ours.unflipped, "other": bare})
                what = "rate over bare DALI, which resizes too"
                yield ratio("loader", what, where, times["ours"], times["other"], Goal(0.95, 1.0))
        finally:
            loader.close()


class _Ours:
    """Epochs of our loader, by what is done with its batches."""

    def __init__(self, loader: Loader, order: TrainOrder, device: torch.device) -> None:
        self._loader = loader
        self._order = order
        self._device = device
        self._pixels = Pixels(device, precision="fp32", channels_last=True, mean=AUGMENT.mean, std=AUGMENT.std)

    def _batches(self) -> Iterator[Any]:
        return self._loader.load(self._order.plans(0, self._order.steps_per_epoch))

    def float(self) -> None:
        """What the network sees."""
        assert sum(len(self._pixels(batch)[1]) for batch in self._batches()) == len(self._order.index)

    def uint8(self) -> None:
        """Mirrored here, since the other side's workers mirror."""
        seen = 0
        for batch in self._batches():
            seen += len(mirrored(batch.images.to(self._device), batch.flips.to(self._device)))
        assert seen == len(self._order.index)

    def unflipped(self) -> None:
        """As the loader gives them."""
        assert sum(len(batch.images) for batch in self._batches()) == len(self._order.index)


def torchvision_loader(root: Path, batch: int, *, as_float: bool, size: int = SIZE) -> DataLoader[Any]:
    """The usual loader: ImageFolder, RandomResizedCrop, flip, worker processes that stay."""
    steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    if as_float:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(AUGMENT.mean, AUGMENT.std)]
    data = ImageFolder(str(root / "train"), v2.Compose(steps))
    return DataLoader(data, batch, shuffle=True, num_workers=WORKERS, persistent_workers=True, prefetch_factor=3)


def drain(loader: DataLoader[Any], device: torch.device) -> Work:
    """One epoch, on the device."""
    return lambda: [images.to(device) is None for images, _ in loader].clear()
