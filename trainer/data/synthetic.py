"""Images made up from their ids: for measuring everything but the data, and for tests that need no files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from trainer.data.batch import Batch, make_batch
from trainer.data.counter import STREAM_PIXELS, WORDS_PER_BLOCK, random_words
from trainer.data.index import Index, Paths
from trainer.data.order import Plan

_STARTS = 1 << 16
_STRIDE = 40503
"""Odd, so that neighbouring ids begin far apart and no two of 65,536 begin at the same place."""


def synthetic_index(n: int, *, classes: int, size: int, split: str = "train") -> Index:
    """An index of n square images of `size` pixels without files; the label of id i is i modulo `classes`."""
    return Index(
        split=split,
        paths=Paths.of(f"{split}/{i % classes}/{i}" for i in range(n)),
        labels=np.arange(n, dtype=np.int64) % classes,
        heights=np.full(n, size, dtype=np.int32),
        widths=np.full(n, size, dtype=np.int32),
        bytes=np.zeros(n, dtype=np.int64),
        crc32=np.zeros(n, dtype=np.uint32),
        classes=[str(label) for label in range(classes)],
    )


class SyntheticLoader:
    """Noise that is a pure function of the sample id; crops are ignored.

    Every image is a stretch of one pool of random bytes, begun at a place that the id decides, so that making
    a batch costs one copy of its own size. Ids that are equal modulo 65,536 look alike.

    Args:
        image_size: side of the largest images; each plan has its own.
        device: where the pool lies and the images are made; None for the CPU.
    """

    def __init__(self, image_size: int, *, device: torch.device | None = None) -> None:
        stretch = image_size * image_size * 3
        rows = -(-(stretch + _STARTS) // (8 * WORDS_PER_BLOCK))
        words = random_words(0, STREAM_PIXELS, 0, start=0, rows=rows, width=WORDS_PER_BLOCK)
        pool = words.astype("<u8").view(np.uint8).reshape(-1)
        self._pool = pool
        self._on_device = None if device is None else torch.from_numpy(pool).to(device)

    def load(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        """One batch for every plan."""
        for plan in plans:
            starts = (plan.ids * _STRIDE) % _STARTS
            size = plan.geometry.size
            stretch = size * size * 3
            # On a CPU, NumPy's gather is several times faster than torch's.
            if self._on_device is None:
                images = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(self._pool, stretch)[starts])
            else:
                stretches = self._on_device.unfold(0, stretch, 1)
                images = stretches[torch.from_numpy(starts).to(stretches.device, non_blocking=True)]
            yield make_batch(plan, images.reshape(-1, size, size, 3))

    def close(self) -> None:
        """Nothing to stop."""
