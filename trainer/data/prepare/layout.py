"""Finding the images of a data set in `ROOT/train/CLASS/...` and `ROOT/val/`, without opening any."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.index import OddFile
from trainer.data.prepare.labels import find_label_file, read_labels
from trainer.errors import DataError

EXTENSIONS = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Layout:
    """The images of both splits.

    Attributes:
        classes: class names, sorted; the position is the label.
        images: for each split, (path relative to the root, label), by class, then by name.
        ignored: files in the folders of images that are none by their name.
    """

    classes: list[str]
    images: dict[str, list[tuple[str, int]]]
    ignored: list[OddFile]


def find_images(root: Path, *, val_labels: Path | None = None) -> Layout:
    """List the images of both splits.

    Args:
        root: folder that holds `train/` and `val/`.
        val_labels: labels of a flat `val/`; looked for in the usual places if None.

    Raises:
        DataError: folders are missing or empty, or the classes of the splits differ.
    """
    for folder in (root, root / "train", root / "val"):
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist: images belong in {root}/train/CLASS/ and {root}/val/CLASS/")
    ignored: list[OddFile] = []
    classes = _class_folders(root / "train")
    if not classes:
        raise DataError(f"{root / 'train'} has no class folders: images belong in {root}/train/CLASS/")
    train = _sorted_split(root, "train", classes, ignored)
    label_file = find_label_file(root, val_labels)
    if label_file is not None and (val_labels is not None or set(_class_folders(root / "val")) != set(classes)):
        val = _flat_split(root, label_file, classes, ignored)
    else:
        _check_same_classes(root, classes)
        val = _sorted_split(root, "val", classes, ignored)
    return Layout(classes, {"train": train, "val": val}, ignored)


def _class_folders(split: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(split) if entry.is_dir() and not entry.name.startswith("."))


def _check_same_classes(root: Path, classes: Sequence[str]) -> None:
    found = set(_class_folders(root / "val"))
    if not found:
        raise DataError(
            f"{root / 'val'} has no class folders: sort its images into {root}/val/CLASS/, "
            f"or write lines `name label` into {root}/val_labels.txt"
        )
    missing, foreign = sorted(set(classes) - found), sorted(found - set(classes))
    if missing or foreign:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(foreign)} besides"] * bool(foreign)
        raise DataError(f"{root / 'val'} {' and '.join(parts)}: train/ and val/ need the same class folders")


def _sorted_split(root: Path, split: str, classes: Sequence[str], ignored: list[OddFile]) -> list[tuple[str, int]]:
    images: list[tuple[str, int]] = []
    empty = []
    for label, name in enumerate(classes):
        paths = list(_images_below(root, f"{split}/{name}", ignored))
        images += ((path, label) for path in paths)
        if not paths:
            empty.append(name)
    if empty:
        raise DataError(
            f"{root / split} has no images of class {_some(empty)}: "
            "add images, or remove the class from train/ and val/"
        )
    return images


def _flat_split(root: Path, label_file: Path, classes: Sequence[str], ignored: list[OddFile]) -> list[tuple[str, int]]:
    labels = read_labels(label_file, classes)
    paths = list(_images_below(root, "val", ignored))
    images, unlabelled, used = [], [], set()
    for path in paths:
        name = path.rsplit("/", 1)[1]
        key = name if name in labels else name.rsplit(".", 1)[0]
        if key in labels:
            images.append((path, labels[key]))
            used.add(key)
        else:
            unlabelled.append(path)
    absent = sorted(labels.keys() - used)
    if unlabelled or absent:
        parts = [f"does not name {_some(unlabelled)}"] * bool(unlabelled)
        parts += [f"names {_some(absent)}, which is not there"] * bool(absent)
        raise DataError(f"{label_file} {' and '.join(parts)}: images of val/ and lines must match one to one")
    missing = sorted(set(range(len(classes))) - {label for _, label in images})
    if missing:
        raise DataError(f"{root / 'val'} has no images of class {_some([classes[i] for i in missing])}: add images")
    return images


def _images_below(root: Path, folder: str, ignored: list[OddFile]) -> Iterator[str]:
    entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    for entry in entries:
        path = f"{folder}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images_below(root, path, ignored)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            yield path
        else:
            ignored.append(OddFile(path, "ignored: no image by its name"))


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
