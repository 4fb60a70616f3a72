"""The order of samples, owned by the trainer: which images, cropped how, in which batch, on which rank.

What the network sees is a pure function of (seed, epoch, sample id) and of the samples in quarantine. Global batch
k of an epoch holds the same samples for every number of ranks; a rank takes a contiguous slice of it. So a run can
resume at any step, on any number of ranks, with any loader, and the same images arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainer.data.counter import STREAM_ORDER, STREAM_SAMPLE, WORDS_PER_BLOCK, random_words
from trainer.data.geometry import (
    WORDS_PER_SAMPLE,
    Augment,
    Geometry,
    eval_geometry,
    flips,
    train_geometry,
    train_kind,
)
from trainer.data.index import Index
from trainer.data.quarantine import Quarantine
from trainer.data.sizes import ImageSizes
from trainer.errors import ConfigError

__all__ = ["Augment", "EvalOrder", "Geometry", "Plan", "TrainOrder", "part", "permutation", "train_kind"]


@dataclass(frozen=True)
class Plan:
    """One micro-batch of one rank, before any pixel is read.

    Attributes:
        epoch: 0-based epoch; 0 for evaluation.
        step: 0-based optimizer step of the whole run; for evaluation the number of the global batch.
        micro: 0-based number of this micro-batch within its step.
        ids: int64 (B,) sample ids, positions in the index; B may be 0.
        labels: int64 (B,).
        heights, widths: int64 (B,) sizes of the files in pixels.
        geometry: what to cut out of each image.
        flips: bool (B,) mirror left to right; the train step does it, not the loader.
        global_count: samples of this micro-batch over all ranks.
        global_batch_count: samples of the whole step over all ranks and micro-batches.
    """

    epoch: int
    step: int
    micro: int
    ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    geometry: Geometry
    flips: npt.NDArray[np.bool_]
    global_count: int
    global_batch_count: int


def part(start: int, stop: int, which: int, parts: int) -> tuple[int, int]:
    """Bounds of the contiguous slice `which` of [start, stop) in `parts` of nearly equal length."""
    length = stop - start
    return start + which * length // parts, start + (which + 1) * length // parts


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Sample ids in the order of an epoch: the stable argsort of n raw words; read-only int64 (n,)."""
    rows = -(-n // WORDS_PER_BLOCK)
    words = random_words(seed, STREAM_ORDER, epoch, start=0, rows=rows, width=WORDS_PER_BLOCK).reshape(-1)[:n]
    ids = np.argsort(words, kind="stable").astype(np.int64)
    ids.setflags(write=False)
    return ids


class TrainOrder:
    """The stream of training micro-batches of one rank.

    Args:
        index: the training split.
        augment: crops and flips.
        image_sizes: side of the images by epoch; None: `augment.image_size`. Windows and flips do not depend on it.
        seed: the run's seed.
        batch_size: global batch size, over all ranks and micro-batches.
        accumulation: micro-batches per step.
        rank: this process.
        world: number of processes.
        drop_last: leave out the last, smaller batch of an epoch.

    Attributes:
        quarantine: samples that others stand in for; empty until somebody adds one.

    Raises:
        ConfigError: the batch cannot be cut that way or an epoch would have no step.
    """

    def __init__(
        self,
        index: Index,
        augment: Augment,
        *,
        seed: int,
        image_sizes: ImageSizes | None = None,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
    ) -> None:
        _check_cut(batch_size, accumulation, rank, world)
        self.index = index
        self.augment = augment
        self.image_sizes = image_sizes or ImageSizes((0,), (augment.image_size,))
        self.seed = seed
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.rank = rank
        self.world = world
        self.quarantine = Quarantine(seed, len(index))
        samples = len(index)
        self.steps_per_epoch = samples // batch_size if drop_last else -(-samples // batch_size)
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"an epoch of {samples} samples has no full batch of {batch_size}: lower train.batch_size"
            )

    @property
    def image_size(self) -> int:
        """Side of the largest images, in pixels."""
        return self.image_sizes.distinct[0]

    @property
    def last_batch_size(self) -> int:
        """Samples of the last global batch of an epoch."""
        return min(len(self.index) - (self.steps_per_epoch - 1) * self.batch_size, self.batch_size)

    @property
    def micro_batch_sizes(self) -> list[int]:
        """Sizes, over all ranks, that a whole batch is cut into, largest first; two, if it cannot be cut evenly."""
        bounds = (part(0, self.batch_size, micro, self.accumulation) for micro in range(self.accumulation))
        return sorted({stop - start for start, stop in bounds}, reverse=True)

    def is_whole(self, plan: Plan) -> bool:
        """Whether a micro-batch belongs to a whole batch, and not to an epoch's smaller last one."""
        return plan.global_batch_count == self.batch_size

    def batch_ids(self, step: int) -> npt.NDArray[np.int64]:
        """Sample ids of the global batch of a step, in order: those of all ranks and micro-batches."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.batch_size
        ids = permutation(self.seed, epoch, len(self.index))[first : first + self.batch_size]
        return self.quarantine.replaced(ids, step)

    def plans(self, start_step: int, end_step: int) -> Iterator[Plan]:
        """Plans of steps start_step to end_step - 1 of the run, `accumulation` per step, one at a time."""
        for step in range(start_step, end_step):
            for micro in range(self.accumulation):
                yield self._plan(step, micro)

    def again(self, plan: Plan) -> Plan:
        """A plan as it is with what is in quarantine now."""
        return self._plan(plan.step, plan.micro)

    def _plan(self, step: int, micro: int) -> Plan:
        epoch, batch = divmod(step, self.steps_per_epoch)
        first = batch * self.batch_size
        last = min(first + self.batch_size, len(self.index))
        micro_first, micro_last = part(first, last, micro, self.accumulation)
        start, stop = part(micro_first, micro_last, self.rank, self.world)
        ids = self.quarantine.replaced(permutation(self.seed, epoch, len(self.index))[start:stop], step)
        words = random_words(self.seed, STREAM_SAMPLE, epoch, start=start, rows=stop - start, width=WORDS_PER_SAMPLE)
        heights, widths = _sizes(self.index, ids)
        augment = replace(self.augment, image_size=self.image_sizes.at(epoch))
        return Plan(
            epoch=epoch,
            step=step,
            micro=micro,
            ids=ids,
            labels=self.index.labels[ids],
            heights=heights,
            widths=widths,
            geometry=train_geometry(augment, words, heights, widths),
            flips=flips(augment, words),
            global_count=micro_last - micro_first,
            global_batch_count=last - first,
        )


class EvalOrder:
    """The stream of evaluation batches of one rank: index order, every sample exactly once over all ranks.

    Args:
        index: the split to evaluate.
        augment: image size and resize.
        batch_size: global batch size, over all ranks.
        rank: this process.
        world: number of processes.
    """

    def __init__(self, index: Index, augment: Augment, *, batch_size: int, rank: int = 0, world: int = 1) -> None:
        _check_cut(batch_size, 1, rank, world)
        self.index = index
        self.augment = augment
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.steps = -(-len(index) // batch_size)

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return self.augment.image_size

    def plans(self) -> Iterator[Plan]:
        """All batches of this rank, `steps` of them on every rank; some may be empty."""
        for step in range(self.steps):
            first = step * self.batch_size
            last = min(first + self.batch_size, len(self.index))
            ids = np.arange(*part(first, last, self.rank, self.world), dtype=np.int64)
            heights, widths = _sizes(self.index, ids)
            yield Plan(
                epoch=0,
                step=step,
                micro=0,
                ids=ids,
                labels=self.index.labels[ids],
                heights=heights,
                widths=widths,
                geometry=eval_geometry(self.augment, heights, widths),
                flips=np.zeros(len(ids), dtype=np.bool_),
                global_count=last - first,
                global_batch_count=last - first,
            )


def _sizes(index: Index, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return index.heights[ids].astype(np.int64), index.widths[ids].astype(np.int64)


def _check_cut(batch_size: int, accumulation: int, rank: int, world: int) -> None:
    assert 0 <= rank < world, "rank must lie in the world"
    if batch_size < 1 or accumulation < 1 or accumulation > batch_size:
        raise ConfigError(f"train.batch_size={batch_size} cannot be cut into {accumulation} micro-batches: raise it")
