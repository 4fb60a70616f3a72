"""Small ImageNets in exactly the layouts that the real one comes in, all of the same images."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_tree import photo
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from trainer.data.index import Summary
from trainer.data.prepare.imagenet import open_imagenet
from trainer.data.prepare.source import Expectation
from trainer.data.prepare.store import Options, store
from trainer.errors import DataError

every_form = pytest.mark.parametrize("form", ["folder", "shards"])

# ILSVRC2012_ID 1, 2, 3, 4 in this order; sorted they are c, a, d, b.
BY_ID = ["n02012849", "n03840681", "n01440764", "n02389026"]
GROUPS = ["n00001740", "n00004258"]
SORTED = sorted(BY_ID)
TRAIN_PER_CLASS = 4
# One of the four classes for each validation image, as ILSVRC2012_ID.
TRUTH = [3, 1, 4, 2, 2, 3, 1, 4]


@dataclass(frozen=True)
class Picture:
    split: str
    name: str
    wnid: str
    content: bytes


def _jpeg(image: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=quality)
    return out.getvalue()


def _content(number: int) -> bytes:
    """Crops of photographs of changing size; every fourth picture is a handwritten digit, in grayscale."""
    if number % 4 == 3:
        shades = (load_digits().images[number] * 15).astype(np.uint8)
        return _jpeg(Image.fromarray(shades).resize((40, 48)), 90)
    return _jpeg(photo(number, size=(40 + 3 * (number % 7), 44 + 2 * (number % 5))), 80 + number % 15)


@lru_cache(maxsize=1)
def pictures() -> list[Picture]:
    """Official names, classes and contents, train first."""
    found = []
    for order, wnid in enumerate(SORTED):
        for number in range(TRAIN_PER_CLASS):
            name = f"{wnid}_{10 + 7 * number}.JPEG"
            found.append(Picture("train", name, wnid, _content(order * TRAIN_PER_CLASS + number)))
    for number, identity in enumerate(TRUTH, start=1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        found.append(Picture("val", name, BY_ID[identity - 1], _content(100 + number)))
    return found


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def tar(members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            add(archive, name, content)
    return out.getvalue()


def meta_mat() -> bytes:
    """The kit's table: classes by their number, then groups of classes, one struct per row."""
    rows = [(BY_ID[n], 0) for n in range(len(BY_ID))] + [(group, 2) for group in GROUPS]
    fields = [
        (name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "num_train_images")
    ]
    table = np.zeros((len(rows), 1), dtype=fields)
    for number, (wnid, children) in enumerate(rows, start=1):
        table[number - 1, 0] = (float(number), wnid, f"thing {number}", "a thing", float(children), TRAIN_PER_CLASS)
    out = io.BytesIO()
    savemat(out, {"synsets": table})
    return out.getvalue()


def devkit(truth: list[int] = TRUTH) -> bytes:
    lines = "".join(f"{number}\n" for number in truth).encode()
    top = "ILSVRC2012_devkit_t12"
    return tar(
        [
            (f"{top}/readme.txt", b"Read me"),
            (f"{top}/data/ILSVRC2012_validation_ground_truth.txt", lines),
            (f"{top}/data/meta.mat", meta_mat()),
        ],
        "w:gz",
    )


def class_tars() -> list[tuple[str, bytes]]:
    return [
        (f"{wnid}.tar", tar([(p.name, p.content) for p in pictures() if (p.split, p.wnid) == ("train", wnid)]))
        for wnid in SORTED
    ]


def official(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(class_tars()))
    val = [(p.name, p.content) for p in pictures() if p.split == "val"]
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(val))
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit())
    return folder


def kaggle(folder: Path) -> Path:
    inner = folder / "ILSVRC" / "Data" / "CLS-LOC"
    lines = ["ImageId,PredictionString"]
    for p in reversed(pictures()):
        file = inner / "train" / p.wnid / p.name if p.split == "train" else inner / "val" / p.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(p.content)
        if p.split == "val":
            lines.append(f"{Path(p.name).stem},{p.wnid} 1 2 30 40 {p.wnid} 3 4 20 20 ")
    (inner / "test").mkdir()
    (inner / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"not asked for")
    (folder / "LOC_val_solution.csv").write_text("\n".join(lines))
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} some words, more\n" for wnid in SORTED))
    return folder


def tree(folder: Path) -> Path:
    for p in pictures():
        file = folder / p.split / p.wnid / p.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(p.content)
    return folder


def webdataset(folder: Path, *, json_names: bool = False) -> Path:
    """Shards in a shuffled order: official keys, or running numbers with the official name in a json file."""
    folder.mkdir(parents=True)
    for split, name, many in (
        ("train", "imagenet1k-train-{:04d}.tar", 3),
        ("val", "imagenet1k-validation-{:02d}.tar", 2),
    ):
        chosen = [p for p in pictures() if p.split == split]
        order = np.random.default_rng(3).permutation(len(chosen))
        for shard in range(many):
            members: list[tuple[str, bytes]] = []
            for number in order[shard::many]:
                p = chosen[number]
                label = str(SORTED.index(p.wnid)).encode()
                key = f"{number:09d}" if json_names else Path(p.name).stem
                about: dict[str, Any] = {"filename": f"{Path(p.name).stem}_{p.wnid}.JPEG", "width": 1}
                members += [(f"{key}.cls", label), (f"{key}.jpg", p.content)]
                members += [(f"{key}.json", json.dumps(about).encode())] if json_names else []
            (folder / name.format(shard)).write_bytes(tar(members))
    return folder


def prepare(
    source: Path, root: Path, *, layout: str | None = None, expect: Expectation | None = None, **options: object
) -> Summary:
    settings = Options(**{"workers": 2, "shard_bytes": 12_000, **options})
    return store(open_imagenet(source, layout, expect=expect), source, root, settings, expect=expect)


def refused(source: Path, root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        prepare(source, root, **options)
    assert "\n" not in str(caught.value)
    assert not (root / "index" / "index.json").exists()
    return str(caught.value)
