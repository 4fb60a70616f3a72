"""ImageNet as WebDataset shards: tar files in which `key.jpg`, `key.cls` and more stand side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.data.prepare.layout import EXTENSIONS
from trainer.data.prepare.source import Item
from trainer.data.prepare.tars import Member, OnePass, members
from trainer.errors import DataError

_SHARD = re.compile(r"(?:.*[-_.])?(train|val|valid|validation)[-_.]?\d+(?:[-_.].*)?\.tar", re.IGNORECASE)
_SHARD_IN_FOLDER = re.compile(r"(?!n\d{8}\.).*\d\.tar", re.IGNORECASE)
_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val"}
_OFFICIAL = re.compile(r"(?:(n\d{8})_\d+|ILSVRC2012_val_\d{8})")
_WITH_SYNSET = re.compile(r"(.+)_(n\d{8})")
_NUMBER = re.compile(r"[0-9]{1,9}")
_LISTS = ("classes.txt", "LOC_synset_mapping.txt", "synsets.txt")
_MIB = 1 << 20


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The tar files of each split: `*train-0000.tar` and the like, or numbered ones in folders of the splits' names."""
    found: dict[str, list[Path]] = {"train": [], "val": []}
    for file in sorted(folder.glob("*.tar")):
        match = _SHARD.fullmatch(file.name)
        if match:
            found[_FOLDERS[match[1].lower()]].append(file)
    for name, split in _FOLDERS.items():
        found[split] += [f for f in sorted((folder / name).glob("*.tar")) if _SHARD_IN_FOLDER.fullmatch(f.name)]
    return found


@dataclass(frozen=True)
class ShardSource:
    """Tar files of samples.

    Attributes: those of `Source`, and
        shards: tar files of each split.
        listed: names of classes in the order of their numbers, from a file beside the tar files; may be empty.
    """

    what: str
    shards: Mapping[str, list[Path]]
    listed: list[str]
    unit: str = "MiB"
    counts: Mapping[str, int] | None = None

    @property
    def total(self) -> int:
        """Size of all tar files."""
        files = [file for files in self.shards.values() for file in files]
        return max(sum(file.stat().st_size for file in files) // _MIB, 1)

    def items(self) -> Iterator[Item]:
        """All images, those of train first."""
        names = _ClassNames(self.listed)
        before = 0
        for split, files in (("train", self.shards["train"]), ("val", self.shards["val"])):
            for file in files:
                with closing(OnePass(file)) as opened:
                    for sample in _samples(opened):
                        label = names.of(sample)
                        done = (before + opened.tell()) // _MIB
                        yield Item(split, label, sample.name, sample.where, sample.read, done)
                before += file.stat().st_size
            names.check(self.what)


@dataclass
class _Sample:
    """What the tar file holds under one key.

    Attributes:
        key: path without what follows the first dot of its name.
        where: its place, in words.
        content, extension: of the image.
        number: of the class, from 0; None if there is only a name.
        label: name of the class; None if there is only a number.
    """

    key: str
    where: str
    content: bytes = b""
    extension: str = ""
    number: int | None = None
    label: str | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        """The image."""
        return self.content

    @property
    def _stem(self) -> str:
        """The official name without its extension if there is one, else the last part of the key."""
        given = self.about.get("filename")
        stem = PurePosixPath(given).stem if isinstance(given, str) else PurePosixPath(self.key).name
        longer = _WITH_SYNSET.fullmatch(stem)
        return longer[1] if longer and _OFFICIAL.fullmatch(longer[1]) else stem

    @property
    def name(self) -> str:
        """File name: official ones end in `.JPEG`, others as in the tar file."""
        return self._stem + (".JPEG" if _OFFICIAL.fullmatch(self._stem) else self.extension)

    @property
    def synset(self) -> str | None:
        """The class that the names speak of."""
        official = _OFFICIAL.fullmatch(self._stem)
        if official and official[1]:
            return official[1]
        for given in (self.about.get("filename"), self.key):
            longer = _WITH_SYNSET.fullmatch(PurePosixPath(given).stem) if isinstance(given, str) else None
            if longer:
                return longer[2]
        if self.label is None and self.number is None:
            return PurePosixPath(self.key).parent.name or None
        return self.label


def _samples(file: OnePass) -> Iterator[_Sample]:
    current: _Sample | None = None
    for member in members(file, str(file.path)):
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if not stem:
            continue
        if current is not None and key != current.key:
            yield from _whole(current)
            current = None
        current = current or _Sample(key, member.where)
        _add(current, member, extension.lower())
    if current is not None:
        yield from _whole(current)


def _whole(sample: _Sample) -> Iterator[_Sample]:
    if sample.extension:
        yield sample
    elif sample.number is not None:
        raise DataError(f"{sample.where} has a class but no image: mend it")


def _add(sample: _Sample, member: Member, extension: str) -> None:
    suffix = PurePosixPath(member.name).suffix
    if suffix.lower() in EXTENSIONS:
        if sample.extension:
            raise DataError(f"{member.where} has the same key as the image before it: rename it")
        sample.content, sample.extension, sample.where = member.read(), suffix, member.where
    elif extension in ("cls", "txt"):
        text = member.read().decode("utf-8", "replace").strip()
        if _NUMBER.fullmatch(text):
            sample.number = int(text)
        elif extension == "cls" or re.fullmatch(r"n\d{8}", text):
            sample.label = text
    elif extension == "json":
        try:
            about = json.loads(member.read())
        except (ValueError, RecursionError):
            raise DataError(f"{member.where} is no JSON: mend it") from None
        sample.about = about if isinstance(about, dict) else {}
        label = sample.about.get("label")
        if isinstance(label, str) and not _NUMBER.fullmatch(label):
            sample.label = sample.label or label
        elif isinstance(label, int | str) and not isinstance(label, bool) and sample.number is None:
            sample.number = int(label)


class _ClassNames:
    """Names of classes: from names of images, from a list, or from what the training images showed."""

    def __init__(self, listed: list[str]) -> None:
        self._listed = listed
        self._numbers: dict[str, int | None] = {}
        self._nameless = 0

    def of(self, sample: _Sample) -> str:
        name, number = sample.synset, sample.number
        if name is not None:
            known = self._numbers.setdefault(name, number)
            if None not in (known, number) and known != number:
                raise DataError(f"{sample.where} has class number {number}, others of {name} have {known}: mend it")
            return name
        if number is None:
            raise DataError(f"{sample.where} has no class: its key needs a .cls, .txt or .json beside the image")
        order = self._listed or sorted(self._numbers)
        if not order:
            self._nameless += 1
            return f"{number:04d}"
        if not 0 <= number < len(order):
            raise DataError(f"{sample.where} has class number {number} of {len(order)} from 0: complete the classes")
        return order[number]

    def check(self, what: str) -> None:
        """Refuse numbers that are not positions in the sorted names, or in the list."""
        order = self._listed or sorted(self._numbers)
        if self._nameless and self._numbers:
            raise DataError(f"{what} names the classes of some images only: put their names in order into classes.txt")
        for name, number in self._numbers.items():
            if number is not None and (number >= len(order) or order[number] != name):
                raise DataError(
                    f"{what} numbers class {name} {number}, which is not its place in the sorted names: put the names "
                    "in the order of their numbers into classes.txt beside the tar files"
                )


def webdataset(folder: Path) -> ShardSource:
    """The tar files `*train-0000.tar` and `*val-0000.tar` of a folder, or `train/0000.tar` and `val/0000.tar`.

    Raises:
        DataError: there are none of a split.
    """
    shards = find_shards(folder)
    for split, files in shards.items():
        if not files and any(folder.glob("*.tar.gz")):
            raise DataError(f"{folder} has no {split}-*.tar, but compressed ones: unpack these with gunzip")
        if not files:
            raise DataError(f"{folder} has no {split}-*.tar: put the tar files of both splits there")
    listed = next((folder / name for name in _LISTS if (folder / name).is_file()), None)
    lines = listed.read_text(encoding="utf-8").splitlines() if listed else []
    return ShardSource(
        f"the WebDataset shards in {folder}", shards, [line.split()[0] for line in lines if line.strip()]
    )
