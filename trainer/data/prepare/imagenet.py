"""`reste prepare imagenet`: four layouts that ImageNet comes in, told apart, and what is known of it."""

from __future__ import annotations

from pathlib import Path

from trainer.data.prepare.official import DEVKIT, TRAIN, VAL, official
from trainer.data.prepare.source import Expectation, Source
from trainer.data.prepare.trees import folder_tree, kaggle, kaggle_folder
from trainer.data.prepare.webdataset import find_shards, webdataset
from trainer.errors import DataError

IMAGENET = Expectation(
    name="ImageNet",
    counts={"train": 1_281_167, "val": 50_000},
    classes=1000,
    md5={
        TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
        VAL: "29b22e2961454d5413ddabcf34fc5622",
        DEVKIT: "fa75699e90414af021442c21a62c3abf",
    },
    per_class={"val": 50},
    known={
        "ILSVRC2012_val_00000001.JPEG": "n01751748",
        "ILSVRC2012_val_00000002.JPEG": "n09193705",
        "ILSVRC2012_val_00000003.JPEG": "n02105855",
        "ILSVRC2012_val_00000004.JPEG": "n04263257",
    },
)
"""ImageNet-1k of 2012, with the labels of four images as independent evidence that numbers became the right names."""

LAYOUTS = ("official", "kaggle", "webdataset", "tree")


def open_imagenet(folder: Path, layout: str | None, *, expect: Expectation | None) -> Source:
    """The images of ImageNet in a folder.

    Args:
        folder: holds them in one of the four layouts.
        layout: one of `LAYOUTS`; None to tell by what is there.
        expect: checksums that the official archives must have; None for any.

    Raises:
        DataError: no layout or more than one fits, or a part is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: name the one that holds ImageNet's archives or images")
    try:
        match layout or _recognise(folder):
            case "official":
                return official(folder, expect.md5 if expect else {})
            case "kaggle":
                return kaggle(folder)
            case "webdataset":
                return webdataset(folder)
            case _:
                return folder_tree(folder)
    except UnicodeDecodeError as error:
        raise DataError(f"a list of classes or labels in {folder} is not UTF-8 text ({error}): mend it") from error
    except OSError as error:
        raise DataError(f"cannot read {error.filename} ({error.strerror}): make it readable") from error


def _recognise(folder: Path) -> str:
    has_shards = any(find_shards(folder).values())
    found = {
        "official": any((folder / name).exists() for name in (TRAIN, VAL)),
        "kaggle": kaggle_folder(folder) is not None,
        "webdataset": has_shards,
        "tree": (folder / "train").is_dir() and (folder / "val").is_dir() and not has_shards,
    }
    fitting = [name for name, fits in found.items() if fits]
    if not fitting:
        raise DataError(
            f"{folder} holds no layout of ImageNet: neither {TRAIN}, nor ILSVRC/Data/CLS-LOC/, nor train-*.tar, "
            "nor train/ and val/"
        )
    if len(fitting) > 1:
        raise DataError(f"{folder} holds ImageNet as {' and as '.join(fitting)}: choose with --layout")
    return fitting[0]
