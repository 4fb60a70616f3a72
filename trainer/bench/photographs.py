"""A data set of photographs of ImageNet's sizes that needs no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.prepare.folder import prepare_folder
from trainer.errors import ConfigError


def write_photographs(root: Path, count: int) -> None:
    """JPEGs of about 500 x 375 pixels, quality 90, cut from scikit-learn's two photographs; prepared.

    Args:
        root: folder to fill.
        count: images for training; two more are for validation.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ConfigError(
            f"the photographs to load are scikit-learn's, which cannot be imported ({error}): install scikit-learn"
        ) from None
    photographs = load_sample_images().images
    generator = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 2)):
        for number in range(images):
            folder = root / split / str(number % 2)
            folder.mkdir(parents=True, exist_ok=True)
            source = photographs[number % 2]
            height, width = int(generator.integers(330, 420)), int(generator.integers(440, 560))
            top = int(generator.integers(0, source.shape[0] - height + 1))
            left = int(generator.integers(0, source.shape[1] - width + 1))
            cut = Image.fromarray(source[top : top + height, left : left + width])
            cut.save(folder / f"{number:05d}.JPEG", quality=90)
    prepare_folder(root)
