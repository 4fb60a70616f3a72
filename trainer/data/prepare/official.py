"""ImageNet as its authors give it out: three archives, read as streams and never unpacked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.data.prepare.devkit import check_truth, read_devkit
from trainer.data.prepare.source import Item
from trainer.data.prepare.tars import Member, OnePass, check_md5, members, nested
from trainer.errors import DataError

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_MIB = 1 << 20


@dataclass(frozen=True)
class OfficialSource:
    """The official archives in one folder.

    Attributes: those of `Source`, and
        folder: holds the archives.
        md5: checksums they must have, by name.
    """

    what: str
    folder: Path
    md5: Mapping[str, str]
    unit: str = "MiB"
    counts: Mapping[str, int] | None = None

    @property
    def total(self) -> int:
        """Size of both archives of images."""
        return self._size(TRAIN) + self._size(VAL)

    def _size(self, name: str) -> int:
        return max((self.folder / name).stat().st_size // _MIB, 1)

    def items(self) -> Iterator[Item]:
        """All images, in the order of the archives."""
        devkit = read_devkit(self.folder / DEVKIT, self.md5.get(DEVKIT))
        trained: Counter[str] = Counter()
        for item in self._train():
            trained[item.label] += 1
            yield item
        seen: set[int] = set()
        for number, item in self._val(devkit.truth):
            seen.add(number)
            yield item
        check_truth(devkit, self.folder / DEVKIT, trained, seen, self.folder / VAL)

    def _train(self) -> Iterator[Item]:
        """An archive of one archive per class."""
        with closing(OnePass(self.folder / TRAIN)) as file:
            for outer in members(file, str(file.path)):
                name = PurePosixPath(outer.name)
                if name.suffix != ".tar":
                    raise DataError(f"{outer.where} is no archive of a class: is {file.path} the official one?")
                for member in nested(outer):
                    yield _item("train", name.stem, member, file.tell() // _MIB)
            check_md5(file, self.md5.get(TRAIN))

    def _val(self, truth: list[str]) -> Iterator[tuple[int, Item]]:
        with closing(OnePass(self.folder / VAL)) as file:
            before = self._size(TRAIN)
            for member in members(file, str(file.path)):
                found = _VAL_NAME.fullmatch(PurePosixPath(member.name).name)
                number = int(found[1]) if found else 0
                if not 1 <= number <= len(truth):
                    raise DataError(
                        f"{member.where} is none of the {len(truth)} images that {DEVKIT} labels: get both again"
                    )
                yield number, _item("val", truth[number - 1], member, before + file.tell() // _MIB)
            check_md5(file, self.md5.get(VAL))


def _item(split: str, label: str, member: Member, done: int) -> Item:
    content = member.read()
    return Item(split, label, PurePosixPath(member.name).name, member.where, lambda: content, done)


def official(folder: Path, md5: Mapping[str, str]) -> OfficialSource:
    """The official archives in a folder.

    Raises:
        DataError: one is missing.
    """
    for name in (TRAIN, VAL, DEVKIT):
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}: put the three official archives into one folder")
    return OfficialSource(f"the official archives in {folder}", folder, md5)
