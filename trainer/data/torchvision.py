"""Pixels by Pillow in threads, as torchvision's transforms make them from PIL images; the parity reference.

For machines without DALI. Pillow releases the interpreter lock while it decodes and resizes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from trainer.data.background import Background, ordered_map
from trainer.data.batch import Batch, make_batch
from trainer.data.faults import file_fault, one_line
from trainer.data.geometry import GeometryKind
from trainer.data.index import Index
from trainer.data.order import Plan
from trainer.data.pillow import cut, open_rgb
from trainer.data.storage import Files, Shards, open_storage

_CHUNK = 8


class TorchvisionLoader:
    """Decode, crop and antialiased bilinear resize with Pillow; EXIF rotation is not applied.

    Args:
        index: the split.
        root: data root, where the index's samples are.
        image_size: side of the largest images of the plans; each plan has its own.
        kind: kind of the plans' geometry.
        max_batch: largest batch of a plan.
        workers: decoding threads.
        prefetch: batches made ahead.
        rank: named in errors.
        storage: reads the samples; by default what the index tells of.
        pinned: images lie in memory from which a GPU copies without its host waiting.
    """

    def __init__(
        self,
        index: Index,
        root: Path,
        *,
        image_size: int,
        kind: GeometryKind,
        max_batch: int,
        workers: int = 2,
        prefetch: int = 2,
        rank: int = 0,
        storage: Files | Shards | None = None,
        pinned: bool = False,
    ) -> None:
        self._index = index
        self._storage = storage or open_storage(index, root)
        self._limits = (image_size, kind, max_batch)
        self._workers = max(workers, 1)
        self._prefetch = prefetch
        self._rank = rank
        self._pinned = pinned
        self._executor = ThreadPoolExecutor(self._workers, thread_name_prefix="decode")
        self._current: weakref.ref[Background[Batch]] | None = None

    def load(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        """Batches of `plans`, in order, made ahead from this call on."""
        self._end_current()
        batches = Background(self._produce(plans), depth=self._prefetch, name="torchvision-loader")
        self._current = weakref.ref(batches)
        return batches

    def close(self) -> None:
        """Stop the threads; the loader cannot be used afterwards."""
        self._end_current()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._storage.close()

    def _end_current(self) -> None:
        batches = self._current() if self._current else None
        if batches is not None:
            batches.close()

    def _produce(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        """Chunks of samples go to the threads; a batch is handed out when the last chunk of it is done."""
        window = 2 * self._workers
        for plan, images, stop in ordered_map(self._executor, self._fill, self._chunks(plans), window=window):
            if stop == len(plan.ids):
                yield make_batch(plan, images)

    def _chunks(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, torch.Tensor, int, int]]:
        for plan in plans:
            largest, kind, most = self._limits
            size, count = plan.geometry.size, len(plan.ids)
            assert plan.geometry.kind == kind, "a plan for another loader"
            assert size <= largest, "a plan larger than image_size"
            assert count <= most, "a plan larger than max_batch"
            images = torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=self._pinned)
            for start in range(0, max(count, 1), _CHUNK):
                yield plan, images, start, min(start + _CHUNK, count)

    def _fill(self, chunk: tuple[Plan, torch.Tensor, int, int]) -> tuple[Plan, torch.Tensor, int]:
        plan, images, start, stop = chunk
        pixels = images.numpy()
        for position in range(start, stop):
            sample = int(plan.ids[position])
            try:
                pixels[position] = cut(open_rgb(self._index, self._storage, sample), plan.geometry, position)
            except Exception as error:  # Pillow's decoders raise many kinds; all of them mean this file
                raise file_fault(self._index, self._storage, sample, rank=self._rank, reason=one_line(error)) from error
        return plan, images, stop
