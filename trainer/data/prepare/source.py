"""What images are taken from: a stream of them, read once, and what is known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trainer.errors import DataError


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source.

    Attributes:
        split: "train" or "val".
        label: name of its class.
        name: path below the folder of its class.
        where: its place in the source, in words.
        read: gives its content; called once, maybe in another thread.
        done: how much of the source has been read with it, in the source's unit.
        file: the file of its own that it is in the source, which may be linked to; None if it is none.
    """

    split: str
    label: str
    name: str
    where: str
    read: Callable[[], bytes]
    done: int
    file: Path | None = None

    @property
    def path(self) -> str:
        """Where it goes, relative to the data root."""
        return f"{self.split}/{self.label}/{self.name}"


class Source(Protocol):
    """Images to be read once from beginning to end.

    Attributes:
        what: the layout and where it is, in words.
        unit: of `total` and of the items' `done`.
        total: how much there is to read.
        counts: images of each split, where known before reading.
    """

    @property
    def what(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def total(self) -> int: ...
    @property
    def counts(self) -> Mapping[str, int] | None: ...

    def items(self) -> Iterator[Item]:
        """All images, those of train first; may be called again.

        Raises:
            DataError: the source is damaged, naming the place, or contradicts itself.
        """
        ...


@dataclass(frozen=True)
class Expectation:
    """What a published data set is known to hold.

    Attributes:
        name: of the data set.
        counts: images of each split.
        classes: number of classes.
        md5: checksums of its archives by file name.
        per_class: images of each class in a split where all classes have as many.
        known: class of some images by name, to check the labels that were derived.
    """

    name: str
    counts: Mapping[str, int]
    classes: int
    md5: Mapping[str, str] = field(default_factory=dict)
    per_class: Mapping[str, int] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)

    def check_counts(self, what: str, counts: Mapping[str, int]) -> None:
        """Refuse other numbers of images.

        Raises:
            DataError: naming them.
        """
        for split, wanted in self.counts.items():
            if counts[split] != wanted:
                raise DataError(
                    f"{what} holds {counts[split]:,} {split} images, {self.name} has {wanted:,}: complete it, "
                    "or accept it with --expect any"
                )

    def check_labels(self, what: str, labels: Mapping[str, Counter[str]], found: Mapping[str, str]) -> None:
        """Refuse other classes, or other labels than the known ones.

        Args:
            what: the source, in words.
            labels: number of images of each class, for each split.
            found: class of every known image by name.

        Raises:
            DataError: naming what is wrong.
        """
        accept = "take a whole copy of it, or accept this one with --expect any"
        if len(labels["train"]) != self.classes:
            raise DataError(f"{what} has {len(labels['train'])} classes, {self.name} has {self.classes}: {accept}")
        for split, wanted in self.per_class.items():
            for label, count in labels[split].items():
                if count != wanted:
                    raise DataError(
                        f"{what} has {count} {split} images of class {label}, {self.name} has {wanted} of each: "
                        f"{accept}"
                    )
        for name, label in self.known.items():
            if found.get(name) != label:
                raise DataError(f"{what} gives {name} the class {found.get(name)}, it is {label}: {accept}")
