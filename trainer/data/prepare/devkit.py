"""Labels of ImageNet's validation images, from the development kit.

The kit numbers classes in an order of its own (ILSVRC2012_ID, from 1), which is not that of the sorted names of
synsets by which everybody trains; `meta.mat` says which synset has which number.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scipy.io import loadmat

from trainer.data.prepare.tars import OnePass, check_md5, unpacked_members
from trainer.errors import DataError

_META = "meta.mat"
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


@dataclass(frozen=True)
class Devkit:
    """What the kit says.

    Attributes:
        synsets: the synset (WNID) of every number that is a class, not a group of classes.
        truth: synset of validation image 1, 2, ...
    """

    synsets: Mapping[int, str]
    truth: list[str]


def read_devkit(file: Path, md5: str | None) -> Devkit:
    """Read the kit's archive and check it against itself.

    Args:
        file: `ILSVRC2012_devkit_t12.tar.gz`.
        md5: checksum that it must have; None for any.

    Raises:
        DataError: it is damaged, incomplete, or contradicts itself.
    """
    opened = OnePass(file, most=4096)
    try:
        found = ((member.name.rsplit("/", 1)[-1], member) for member in unpacked_members(opened))
        parts = {name: member.read() for name, member in found if name in (_META, _TRUTH)}
        check_md5(opened, md5)
    finally:
        opened.close()
    for name in (_META, _TRUTH):
        if name not in parts:
            raise DataError(f"{file} has no {name}: get it again")
    synsets = _synsets(file, parts[_META])
    return Devkit(synsets, _truth(file, parts[_TRUTH], synsets))


def _synsets(file: Path, content: bytes) -> dict[int, str]:
    try:
        rows = loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=False)["synsets"]
        return {int(row.ILSVRC2012_ID): str(row.WNID) for row in rows if int(row.num_children) == 0}
    except Exception as error:  # SciPy raises many kinds
        raise DataError(f"{file}: {_META} cannot be read ({type(error).__name__}): get it again") from error


def _truth(file: Path, content: bytes, synsets: Mapping[int, str]) -> list[str]:
    numbers = content.split()
    for line, number in enumerate(numbers, start=1):
        if not number.isdigit() or int(number) not in synsets:
            raise DataError(f"{file}: line {line} of {_TRUTH} is no class of {_META}: get it again")
    absent = sorted(synsets.keys() - {int(number) for number in numbers})
    if absent:
        raise DataError(f"{file}: no line of {_TRUTH} is class {absent[0]} of {_META}: get it again")
    return [synsets[int(number)] for number in numbers]


def check_truth(devkit: Devkit, file: Path, trained: Counter[str], seen: set[int], archive: Path) -> None:
    """Compare the kit with the images that were found.

    Args:
        devkit: the kit.
        file: where it is from.
        trained: number of training images of each synset.
        seen: numbers of the validation images.
        archive: where these are from.

    Raises:
        DataError: the classes differ, or the validation images are not those that the kit labels.
    """
    foreign = sorted(trained.keys() ^ set(devkit.synsets.values()))
    if foreign:
        raise DataError(f"class {foreign[0]} is in the training images or in {file} but not in both: get both again")
    absent = sorted(set(range(1, len(devkit.truth) + 1)) - seen)
    if absent:
        raise DataError(f"{archive} lacks validation image {absent[0]} of {len(devkit.truth)}: get it again")
