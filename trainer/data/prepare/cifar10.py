"""`reste prepare cifar10`: the official archive of pickled arrays as lossless PNG files.

The archive (Krizhevsky, 2009) holds 60,000 colour images of 32 x 32 pixels: five files of 10,000 for training
and one for testing, each row 1,024 red, then green, then blue values.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from trainer.data.prepare.pickles import load_arrays
from trainer.data.prepare.source import Expectation, Item
from trainer.data.prepare.tars import OnePass, check_md5, unpacked_members
from trainer.errors import DataError

ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10 = Expectation(
    name="CIFAR-10",
    counts={"train": 50_000, "val": 10_000},
    classes=10,
    md5={ARCHIVE: "c58f30108f718f92721af3b95e74349a"},
    per_class={"train": 5000, "val": 1000},
)
_META = "batches.meta"
_BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]}
_SIDE = 32


@dataclass(frozen=True)
class CifarSource:
    """The images of the archive, numbered in its order within each split.

    Attributes: those of `Source`, and
        classes: names in the order of the archive's labels.
        arrays: for each split, pixels uint8 (N, 3072) and labels (N,).
    """

    what: str
    classes: list[str]
    arrays: Mapping[str, tuple[np.ndarray, list[int]]]
    unit: str = "images"

    @property
    def total(self) -> int:
        """Images of both splits."""
        return sum(self.counts.values())

    @property
    def counts(self) -> Mapping[str, int]:
        """Images of each split."""
        return {split: len(labels) for split, (_, labels) in self.arrays.items()}

    def items(self) -> Iterator[Item]:
        """All images, in the archive's order."""
        done = 0
        for split, (pixels, labels) in self.arrays.items():
            for number, label in enumerate(labels):
                done += 1
                name = f"{number:05d}.png"
                where = f"{self.what}, {split} image {number}"
                yield Item(split, self.classes[label], name, where, partial(_png, pixels[number]), done)


def _png(row: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(row.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0))).save(out, format="PNG")
    return out.getvalue()


def open_cifar10(given: Path, *, expect: Expectation | None) -> CifarSource:
    """Read the archive, or the folder it unpacks to.

    Args:
        given: `cifar-10-python.tar.gz`, a folder with it, or the folder `cifar-10-batches-py`.
        expect: checksum that the archive must have; None for any.

    Raises:
        DataError: it is damaged or incomplete, or a pickle holds anything but arrays.
    """
    if given.is_dir() and (given / ARCHIVE).is_file():
        given = given / ARCHIVE
    if given.is_dir():
        contents = _from_folder(given)
    elif given.is_file():
        contents = _from_archive(given, expect.md5[ARCHIVE] if expect else None)
    else:
        raise DataError(f"{given} does not exist: name {ARCHIVE} or the folder it unpacks to")
    classes, arrays = _read(given, contents)
    return CifarSource(f"CIFAR-10 in {given}", classes, arrays)


def _from_folder(folder: Path) -> dict[str, bytes]:
    inner = folder / "cifar-10-batches-py"
    folder = inner if inner.is_dir() else folder
    try:
        return {name: (folder / name).read_bytes() for name in _names() if (folder / name).is_file()}
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror}): make it readable") from error


def _from_archive(file: Path, md5: str | None) -> dict[str, bytes]:
    with closing(OnePass(file, most=4096)) as opened:
        names = set(_names())
        found = ((PurePosixPath(member.name).name, member) for member in unpacked_members(opened))
        contents = {name: member.read() for name, member in found if name in names}
        check_md5(opened, md5)
    return contents


def _names() -> list[str]:
    return [_META, *(name for names in _BATCHES.values() for name in names)]


def _read(given: Path, contents: Mapping[str, bytes]) -> tuple[list[str], dict[str, tuple[np.ndarray, list[int]]]]:
    absent = [name for name in _names() if name not in contents]
    if absent:
        raise DataError(f"{given} has no {absent[0]}: get the whole of {ARCHIVE}")
    meta = load_arrays(contents[_META], where=f"{given}, {_META}")
    named = _field(meta, "label_names", given, _META)
    if not isinstance(named, list) or len({_text(name) for name in named}) != len(named):
        raise DataError(f"{given}, {_META} does not hold a list of different class names: get {ARCHIVE} again")
    classes = [_text(name) for name in named]
    arrays = {}
    for split, names in _BATCHES.items():
        batches = [_batch(given, name, contents[name], len(classes)) for name in names]
        pixels = np.concatenate([pixels for pixels, _ in batches])
        arrays[split] = pixels, [label for _, labels in batches for label in labels]
    return classes, arrays


def _batch(given: Path, name: str, content: bytes, classes: int) -> tuple[np.ndarray, list[int]]:
    batch = load_arrays(content, where=f"{given}, {name}")
    pixels, labels = _field(batch, "data", given, name), _field(batch, "labels", given, name)
    labels = labels.tolist() if isinstance(labels, np.ndarray) else labels
    are_labels = isinstance(labels, list) and all(type(n) is int and 0 <= n < classes for n in labels)
    are_pixels = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    if not are_labels or not are_pixels or pixels.shape != (len(labels), 3 * _SIDE**2):
        raise DataError(f"{given}, {name} does not hold images of 32 x 32 pixels and their labels: get {ARCHIVE} again")
    return pixels, labels


def _field(found: Any, key: str, given: Path, name: str) -> Any:
    # Pickled by Python 2: keys are bytes.
    value = found.get(key.encode(), found.get(key)) if isinstance(found, dict) else None
    if value is None:
        raise DataError(f"{given}, {name} has no {key}: get {ARCHIVE} again")
    return value


def _text(name: bytes | str) -> str:
    return name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
