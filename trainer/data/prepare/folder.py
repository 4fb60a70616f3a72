"""`reste prepare folder`: look at every image of a data set once, then index it, or say what is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from trainer.data.index import BEGUN, Index, OddFile, Summary, index_folder, save_indexes
from trainer.data.paths import Paths
from trainer.data.prepare.check import FileFacts
from trainer.data.prepare.layout import Layout, find_images
from trainer.data.prepare.scan import Memory, scan
from trainer.errors import DataError

_NAMED = 20
_WORTH_KEEPING = 10_000
_MEMORY = "partial.jsonl"

Progress = Callable[[int, int], None]


def prepare_folder(
    root: Path,
    *,
    workers: int | None = None,
    val_labels: Path | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Index `root/train/CLASS/*` and `root/val/CLASS/*` in place, decoding every file fully.

    A flat `root/val/*` works too, with a file of labels. A killed call goes on where it was. The index
    appears when it is complete; an index that was there before stays until then.

    Args:
        root: data root; nothing in it is changed but `index/`.
        workers: threads; None for one per core.
        val_labels: labels of a flat `val/`; looked for in the usual places if None.
        skip_bad: leave out files that cannot be decoded, and say so in the index, instead of refusing.
        progress: called with (files done, files in all).

    Returns:
        What was written to `index.json`.

    Raises:
        DataError: folders are missing or empty, classes of train and val differ, labels do not match, a file
            cannot be decoded, or the index cannot be written.
    """
    root = Path(root)
    if (index_folder(root) / BEGUN).exists():
        raise DataError(f"{root} is half made: start the reste prepare that began it again, with the same SOURCE")
    try:
        layout = find_images(root, val_labels=val_labels)
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror}): make it readable") from error
    folder = index_folder(root)
    try:
        folder.mkdir(exist_ok=True)
        facts = _look(root, layout, workers=workers or os.cpu_count() or 1, progress=progress)
        bad = _bad_files(facts)
        try:
            if bad and not skip_bad:
                raise refusal([OddFile(str(root / file.path), file.what) for file in bad], len(facts))
            indexes = [_index(split, images, layout.classes, facts) for split, images in layout.images.items()]
        except DataError:
            _forget(folder, len(facts))
            raise
        summary = save_indexes(root, indexes, odd=_odd_files(layout, facts), quarantined=bad)
        (folder / _MEMORY).unlink()
    except OSError as error:
        raise DataError(
            f"cannot write {folder} ({error.strerror}): free it, or prepare a folder of your own "
            f"that links to {root}/train and {root}/val"
        ) from error
    return summary


def _look(root: Path, layout: Layout, *, workers: int, progress: Progress | None) -> dict[str, FileFacts]:
    names = [name for images in layout.images.values() for name, _ in images]
    with Memory(index_folder(root) / _MEMORY) as memory:
        found = scan(root, names, memory=memory, workers=workers, progress=progress)
    return dict(zip(names, found, strict=True))


def _bad_files(facts: dict[str, FileFacts]) -> list[OddFile]:
    return [OddFile(name, found.bad) for name, found in facts.items() if found.bad is not None]


def _odd_files(layout: Layout, facts: dict[str, FileFacts]) -> list[OddFile]:
    odd = [OddFile(name, what) for name, found in facts.items() for what in found.odd]
    return odd + layout.ignored


def _forget(folder: Path, files: int) -> None:
    """Leave nothing behind, unless looking at all files again would take long."""
    if files < _WORTH_KEEPING:
        (folder / _MEMORY).unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def refusal(bad: Sequence[OddFile], files: int) -> DataError:
    """The error for files that cannot be used, which are named up to twenty."""
    named = "; ".join(f"{file.path} ({file.what})" for file in bad[:_NAMED])
    more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return DataError(
        f"{len(bad)} of {files} files cannot be used: {named}{more}: replace them, or leave them out with --skip-bad"
    )


def _index(split: str, images: Sequence[tuple[str, int]], classes: list[str], facts: dict[str, FileFacts]) -> Index:
    usable = [(name, label, facts[name]) for name, label in images if facts[name].bad is None]
    return build_index(split, usable, classes)


class Facts(Protocol):
    """What an index holds of an image besides its path and label."""

    @property
    def bytes(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def crc32(self) -> int: ...


def build_index(split: str, usable: Sequence[tuple[str, int, Facts]], classes: list[str]) -> Index:
    """The index of images given as (path, label, facts), in their order.

    Raises:
        DataError: a class has no image.
    """
    labels = np.array([label for _, label, _ in usable], dtype=np.int64)
    absent = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(absent):
        raise DataError(f"no file of class {classes[absent[0]]} in {split}/ can be used: replace its files")
    return Index(
        split=split,
        paths=Paths.of(name for name, _, _ in usable),
        labels=labels,
        heights=np.array([found.height for _, _, found in usable], dtype=np.int32),
        widths=np.array([found.width for _, _, found in usable], dtype=np.int32),
        bytes=np.array([found.bytes for _, _, found in usable], dtype=np.int64),
        crc32=np.array([found.crc32 for _, _, found in usable], dtype=np.uint32),
        classes=classes,
    )
