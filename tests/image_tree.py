"""Small data sets of JPEG files of all sizes and qualities, cut from scikit-learn's two photographs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

FORMS: tuple[Literal["folder"], Literal["shards"]] = ("folder", "shards")


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


def store_in_both_forms(folder: Path, source: Path, *, shard_bytes: int) -> dict[str, Path]:
    """A tree prepared as a folder and as tar files; the data roots by the name of the form."""
    from trainer.data.prepare.imagenet import open_imagenet
    from trainer.data.prepare.store import Options, store

    for form in FORMS:
        options = Options(form, workers=2, shard_bytes=shard_bytes)
        store(open_imagenet(source, None, expect=None), source, folder / form, options, expect=None)
    return {form: folder / form for form in FORMS}


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
