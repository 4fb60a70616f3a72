"""`reste prepare digits`: a data set of 1,797 small images that needs no download, for first steps and tests.

Scikit-learn's handwritten digits (a part of the UCI set of Alpaydin and Kaynak, 8 x 8 pixels, 17 shades),
enlarged to 32 x 32 RGB JPEG files in the folders that any other data set has.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from trainer.data.index import Summary, load_summary
from trainer.data.prepare.folder import Progress, prepare_folder
from trainer.errors import DataError

SAMPLES = 1797
_SIDE = 32
_SHADES = 16
_EVERY_FIFTH = 5


def prepare_digits(root: Path, *, workers: int | None = None, progress: Progress | None = None) -> Summary:
    """Write the digits to `root/{train,val}/{0..9}/` and index them; nothing is done if they are there.

    Of each class every fifth image, in the order of the source, is for validation. The folder appears whole
    or not at all.

    Args:
        root: folder to make; may exist if it is empty.
        workers: threads that check the files; None for one per core.
        progress: called with (files done, files in all).

    Raises:
        DataError: the folder holds something else, or cannot be written.
    """
    root = Path(root).absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        return _check_there(root)
    temporary = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        _write_images(temporary)
        summary = prepare_folder(temporary, workers=workers, progress=progress)
        temporary.rename(root)
    except OSError as error:
        raise DataError(f"cannot write {root} ({error.strerror}): choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return summary


def _check_there(root: Path) -> Summary:
    refusal = DataError(f"{root} is not empty and does not hold the digits: choose another folder, or remove it")
    try:
        summary = load_summary(root)
    except DataError:
        raise refusal from None
    if summary.classes != list("0123456789") or sum(summary.samples.values()) != SAMPLES:
        raise refusal
    return summary


def _write_images(root: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    seen: dict[int, int] = {}
    for number, (shades, label) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        seen[label] = seen.get(label, 0) + 1
        split = "val" if seen[label] % _EVERY_FIFTH == 0 else "train"
        folder = root / split / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.rint(shades * (255 / _SHADES)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        image.convert("RGB").save(folder / f"{number:04d}.JPEG", quality=95)
