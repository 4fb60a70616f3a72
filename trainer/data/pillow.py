"""Pixels by Pillow, one image at a time, for the loader that uses it and to say what is wrong with a file."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from trainer.data.geometry import Geometry
from trainer.data.index import Index
from trainer.data.storage import Storage

Pixels = npt.NDArray[np.uint8]


def open_rgb(index: Index, storage: Storage, sample: int) -> Image.Image:
    """Decode a sample whole, without EXIF rotation.

    Raises:
        ValueError: it is no image, or its size is not the indexed one.
        OSError: it cannot be read; Pillow's decoders raise other kinds too.
    """
    try:
        opened = Image.open(io.BytesIO(storage.read(sample)))
    except UnidentifiedImageError:
        raise ValueError("it is no image that can be read") from None
    with opened as image:
        indexed = (int(index.widths[sample]), int(index.heights[sample]))
        if image.size != indexed:
            raise ValueError(f"it has {_size(image.size)} pixels, {_size(indexed)} when it was indexed")
        return image.convert("RGB")


def cut(image: Image.Image, geometry: Geometry, position: int) -> Pixels:
    """Apply the geometry of one sample of a batch to its decoded image; uint8 (S, S, 3)."""
    side = geometry.size
    if geometry.kind == "window":
        top, left, height, width = geometry.windows[position].tolist()
        return np.asarray(resize(image.crop((left, top, left + width, top + height)), side, side))
    height, width = geometry.sizes[position].tolist()
    top, left = geometry.offsets[position].tolist()
    return np.asarray(resize(image, height, width).crop((left, top, left + side, top + side)))


def resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Antialiased bilinear resize; the image itself where it has that size already."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _size(pair: tuple[int, int]) -> str:
    return f"{pair[0]} x {pair[1]}"
