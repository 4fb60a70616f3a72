"""Labels of a validation folder that is not sorted into class folders."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from trainer.errors import DataError

CANDIDATES = (
    "val_labels.txt",
    "val_labels.csv",
    "val/labels.txt",
    "val/labels.csv",
    "val/val_annotations.txt",
    "LOC_val_solution.csv",
)
"""Where a label file is looked for, below the data root, when none is named."""


def find_label_file(root: Path, given: Path | None) -> Path | None:
    """The label file to use: the one given, else the first candidate that exists.

    Raises:
        DataError: the one given does not exist.
    """
    if given is not None and not given.is_file():
        raise DataError(f"label file {given} does not exist: correct --val-labels")
    return given or next((root / name for name in CANDIDATES if (root / name).is_file()), None)


def read_labels(file: Path, classes: Sequence[str]) -> dict[str, int]:
    """Label of every image named in the file, by the image's name as written there, without its folder.

    Lines are `name label`, separated by blanks or tabs, in a CSV file by commas; what follows the label is
    ignored, and so is the header of a CSV file. A label is the name of a class or, if no class is called so,
    the 0-based number of a class in sorted order. The CSV of the Kaggle competition (`ImageId,PredictionString`)
    is of this form.

    Raises:
        DataError: a line cannot be understood or contradicts another, naming file and line.
    """
    numbers = {str(number): number for number in range(len(classes))}
    numbers.update({name: number for number, name in enumerate(classes)})
    labels: dict[str, int] = {}
    for line, words in _rows(file):
        label = numbers.get(words[1]) if len(words) > 1 else None
        if label is None and line == 1 and file.suffix == ".csv":
            continue
        if label is None:
            raise DataError(
                f"{file}:{line}: {' '.join(words[:2])!r} is not `name label` with a class of train "
                f"or a number from 0 to {len(classes) - 1}: correct the label file"
            )
        name = PurePosixPath(words[0]).name
        if labels.setdefault(name, label) != label:
            raise DataError(f"{file}:{line}: {name} has another label further up: correct the label file")
    return labels


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"label file {file} cannot be read ({error}): correct --val-labels") from error
    rows = csv.reader(lines) if file.suffix == ".csv" else ([line] for line in lines)
    for number, row in enumerate(rows, start=1):
        words = " ".join(row).split()
        if words:
            yield number, words
