"""ImageNet as folders: any `train/CLASS/` tree, and the layout of the Kaggle competition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer.data.prepare.layout import Layout, find_images
from trainer.data.prepare.source import Item
from trainer.errors import DataError

_INNER = Path("Data/CLS-LOC")
_SOLUTION = "LOC_val_solution.csv"
_MAPPING = "LOC_synset_mapping.txt"


@dataclass(frozen=True)
class TreeSource:
    """The images of a folder tree, as `reste prepare folder` finds them.

    Attributes: those of `Source`, and
        root: folder that holds `train/` and `val/`.
        layout: its images.
    """

    what: str
    root: Path
    layout: Layout
    unit: str = "images"

    @property
    def total(self) -> int:
        """Images of both splits."""
        return sum(len(images) for images in self.layout.images.values())

    @property
    def counts(self) -> Mapping[str, int]:
        """Images of each split."""
        return {split: len(images) for split, images in self.layout.images.items()}

    def items(self) -> Iterator[Item]:
        """All images, by class, then by name."""
        done = 0
        for split in ("train", "val"):
            for path, label in self.layout.images[split]:
                done += 1
                file, name = self.root / path, self.layout.classes[label]
                below = path.removeprefix(f"{split}/").removeprefix(f"{name}/")
                yield Item(split, name, below, str(file), partial(Path.read_bytes, file), done, file)


def folder_tree(source: Path) -> TreeSource:
    """A folder with `train/CLASS/` and `val/CLASS/`, or a flat `val/` with a file of labels.

    Raises:
        DataError: folders are missing or empty, or labels do not match.
    """
    return TreeSource(f"the folder tree {source}", source, find_images(source))


def kaggle_folder(source: Path) -> Path | None:
    """The folder that holds `Data/CLS-LOC/train`, at or below `source`; None if there is none."""
    return next((folder for folder in (source / "ILSVRC", source) if (folder / _INNER / "train").is_dir()), None)


def kaggle(source: Path) -> TreeSource:
    """The unpacked archive of the Kaggle competition: `ILSVRC/Data/CLS-LOC/` and `LOC_val_solution.csv`.

    Raises:
        DataError: a part is missing, labels do not match, or the classes are not those of the list of synsets.
    """
    folder = kaggle_folder(source)
    if folder is None:
        raise DataError(
            f"{source} has no ILSVRC/Data/CLS-LOC/train: unpack the archive of the Kaggle competition there"
        )
    places = (source, folder.parent, folder)
    solution = next((place / _SOLUTION for place in places if (place / _SOLUTION).is_file()), None)
    if solution is None:
        raise DataError(f"{source} has no {_SOLUTION}, which labels the validation images: put it there")
    layout = find_images(folder / _INNER, val_labels=solution)
    mapping = solution.with_name(_MAPPING)
    if mapping.is_file():
        listed = [line.split()[0] for line in mapping.read_text(encoding="utf-8").splitlines() if line.strip()]
        if sorted(listed) != layout.classes:
            raise DataError(
                f"{folder / _INNER / 'train'} has {len(layout.classes)} classes, which are not the {len(listed)} of "
                f"{mapping}: complete it, or correct the list"
            )
    return TreeSource(f"the Kaggle competition's folders in {source}", folder / _INNER, layout)
