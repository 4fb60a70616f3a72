"""Small data sets of JPEG files of all sizes and qualities, cut from scikit-learn's two photographs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


@lru_cache(maxsize=1)
def photographs() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def photo(number: int, *, size: tuple[int, int] | None = None) -> Image.Image:
    """A stretch of a photograph, different for every number; width and height at random unless given."""
    rng = np.random.default_rng(number)
    source = photographs()[number % 2]
    width, height = size or (int(rng.integers(180, 500)), int(rng.integers(180, 400)))
    left = int(rng.integers(0, source.width - width + 1))
    top = int(rng.integers(0, source.height - height + 1))
    return source.crop((left, top, left + width, top + height))


def save_jpeg(image: Image.Image, path: Path, *, quality: int = 90, subsampling: int = 2, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="JPEG", quality=quality, subsampling=subsampling, **options)
    return path


def make_tree(
    root: Path, *, train: int = 12, val: int = 6, classes: int = 3, size: tuple[int, int] | None = None
) -> Path:
    """`root/{train,val}/c0.../000.JPEG`, `train` and `val` images in all, dealt to the classes in turn."""
    for split, count, first in (("train", train, 0), ("val", val, 1000)):
        for number in range(count):
            quality = (75, 85, 90, 95)[number % 4]
            subsampling = 0 if number % 3 == 0 else 2
            path = root / split / f"c{number % classes}" / f"{number:03d}.JPEG"
            save_jpeg(photo(first + number, size=size), path, quality=quality, subsampling=subsampling)
    return root
