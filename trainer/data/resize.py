"""Antialiased bilinear resize of decoded images on a CPU, in threads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F

from trainer.data.geometry import Geometry
from trainer.data.pillow import Pixels


class Resizer:
    """From images of their own sizes to a batch, several at a time: torch works outside of Python's lock.

    Args:
        threads: images at a time.
        antialias: off only to show what that does.
    """

    def __init__(self, threads: int, *, antialias: bool = True) -> None:
        self._threads = threads
        self._antialias = antialias
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="resize")

    def __call__(self, images: Sequence[torch.Tensor], geometry: Geometry) -> torch.Tensor:
        """What `geometry` shows of `images`.

        Args:
            images: uint8 (H, W, 3) each: decoded windows where the kind is "window", else whole images.

        Returns:
            uint8 (B, S, S, 3).
        """
        side = geometry.size
        # NumPy copies in the thread that asks; torch would start threads of its own in each of ours.
        batch = np.empty((len(images), side, side, 3), np.uint8)

        def some(positions: range) -> None:
            for position in positions:
                self._show(images[position], geometry, position, batch[position])

        shares = [range(first, len(images), self._threads) for first in range(self._threads)]
        list(self._executor.map(some, shares))
        return torch.from_numpy(batch)

    def close(self) -> None:
        """Stop the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _show(self, image: torch.Tensor, geometry: Geometry, position: int, out: Pixels) -> None:
        if geometry.kind == "window":
            out[...] = self._resized(image, geometry.size, geometry.size)
            return
        height, width = geometry.sizes[position].tolist()
        top, left = geometry.offsets[position].tolist()
        place(self._resized(image, height, width), top, left, out)

    def _resized(self, image: torch.Tensor, height: int, width: int) -> Pixels:
        if image.shape[:2] != (height, width):
            # With these strides torch sees channels_last, for which it has its fast code.
            nchw, size = image[None].permute(0, 3, 1, 2), (height, width)
            resized = F.interpolate(nchw, size=size, mode="bilinear", antialias=self._antialias)
            image = resized[0].permute(1, 2, 0)
        return image.numpy()


def place(image: Pixels, top: int, left: int, out: Pixels) -> None:
    """Fill `out` (S, S, 3) with the part of `image` (H, W, 3) that begins at (top, left), zero outside of it."""
    side = len(out)
    rows, columns = (
        slice(min(max(first, 0), end), min(max(first + side, 0), end))
        for first, end in zip((top, left), image.shape[:2], strict=True)
    )
    shown = image[rows, columns]
    if shown.shape != out.shape:
        out[...] = 0
    out[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = shown
