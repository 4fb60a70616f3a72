"""Which settings of the loader are the best on this machine: `reste bench loader --data ROOT`."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.config import Config
from trainer.config_schema import DataConfig
from trainer.data import datasets
from trainer.data.batch import Batch, Loader
from trainer.data.index import load_index
from trainer.data.order import TrainOrder
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError

DEPTHS = (1, 2, 3, 4, 6, 8)
SHARES = (0.0, 0.12, 0.25, 0.5, 0.75, 0.9)
WARM_UP = 3
"""Batches before the clock runs."""
NEAR = 0.97
"""Of the best rate: what fewer threads or less memory reach of it is taken."""
HUNGER = 0.9
"""Of the loader's rate: what the consumer that prefetching is measured with takes."""


@dataclass(eq=False)
class Tried:
    """One setting and its rates.

    Attributes:
        values: by configuration key.
        images_per_s: of each round.
    """

    values: dict[str, Any]
    images_per_s: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Images a second."""
        return statistics.median(self.images_per_s)


@dataclass(frozen=True)
class Swept:
    """What was found.

    Attributes:
        loader: `data.loader` of all measurements.
        decoding: every number of threads (and, on a GPU, share of its decoder unit), drained as fast as it goes.
        waiting: every depth of prefetching, read at a steady pace below that rate.
        best: the values to keep, by configuration key.
        images_per_s: of the best, drained.
    """

    loader: str
    decoding: list[Tried]
    waiting: list[Tried]
    best: dict[str, Any]
    images_per_s: float


class Sweep:
    """Measures the loader of one rank on a data set, as a rank of this machine would use it.

    Args:
        root: a prepared data set.
        device: where batches go.
        image_size: pixels.
        repeats: rounds; every setting is measured in each, in turn.
        seconds: of one measurement.

    Raises:
        DataError: the data set is not prepared.
    """

    def __init__(self, root: Path, device: torch.device, *, image_size: int, repeats: int, seconds: float) -> None:
        self._device = device
        self._repeats = repeats
        self._seconds = seconds
        self._root = str(root)
        self._image_size = image_size
        self._loader: Literal["dali", "torchvision"] = "dali"
        index = load_index(root, "train")
        self.batch = min(len(index), 128 if device.type == "cuda" else 32)
        augment = datasets.augment(self._config({}))
        self._order = TrainOrder(index, augment, seed=0, batch_size=self.batch, drop_last=True)
        try:
            self._create({}).close()
        except ConfigError:  # DALI is not for every machine
            self._loader = "torchvision"

    def run(self, tell: Callable[[str], object]) -> Swept:
        """Find the least threads, then the least depth, that come near the best rate.

        Args:
            tell: told what begins.
        """
        torch.set_num_threads(1)
        shares = SHARES if self._device.type == "cuda" and self._loader == "dali" else (None,)
        decoding = [
            Tried({"data.workers": workers} | ({} if share is None else {"data.decode_share": share}))
            for workers, share in itertools.product(thread_counts(), shares)
        ]
        self._race(decoding, tell, self._drain)
        best = nearest(decoding)
        pace = self.batch / (HUNGER * best.median)
        waiting = [Tried(best.values | {"data.prefetch": depth}) for depth in DEPTHS]
        self._race(waiting, tell, lambda batches: self._drain(batches, pace=pace))
        return Swept(self._loader, decoding, waiting, nearest(waiting).values, best.median)

    def _race(
        self, tried: list[Tried], tell: Callable[[str], object], work: Callable[[Iterator[Batch]], float]
    ) -> None:
        for number in range(self._repeats):
            for setting in tried[number % len(tried) :] + tried[: number % len(tried)]:
                values = ", ".join(f"{key}={value}" for key, value in setting.values.items())
                tell(f"round {number + 1} of {self._repeats}: {values}")
                setting.images_per_s.append(self._measure(setting.values, work))

    def _measure(self, values: dict[str, Any], work: Callable[[Iterator[Batch]], float]) -> float:
        loader = self._create(values)
        try:
            batches = loader.load(self._order.plans(0, 2**40))
            for _ in range(WARM_UP):
                next(batches)
            return work(batches)
        finally:
            loader.close()

    def _drain(self, batches: Iterator[Batch], *, pace: float = 0.0) -> float:
        """Images a second that a consumer gets which takes `pace` seconds for a batch once it has it."""
        begun, seen = time.perf_counter(), 0
        while time.perf_counter() - begun < self._seconds or not seen:
            seen += len(next(batches).images)
            time.sleep(pace)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return seen / (time.perf_counter() - begun)

    def _create(self, values: dict[str, Any]) -> Loader:
        return datasets.create_loader(self._config(values), self._order, Environment(), self._device)

    def _config(self, values: dict[str, Any]) -> Config:
        own = {key.removeprefix("data."): value for key, value in values.items()}
        data = DataConfig(root=self._root, loader=self._loader, image_size=self._image_size, **own)  # type: ignore[arg-type]
        return Config(data=data)


def thread_counts() -> list[int]:
    """1, 2, 4 and so on to twice this rank's share of the cores, and that share; each GPU is a rank."""
    share = max(1, len(os.sched_getaffinity(0)) // max(1, torch.cuda.device_count()))
    return sorted({share, *(2**power for power in range(16) if 2**power <= 2 * share)})


def nearest(tried: list[Tried]) -> Tried:
    """The first setting that comes near the best rate; they stand in the order of what they cost."""
    best = max(setting.median for setting in tried)
    return next(setting for setting in tried if setting.median >= NEAR * best)
