"""`reste prepare cifar10`: the archive's arrays come back from PNG files, and its pickles run nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_tree import photo
from imagenet_sources import every_form, tar
from PIL import Image

from trainer.data.index import load_index
from trainer.data.prepare.cifar10 import ARCHIVE, CIFAR10, open_cifar10
from trainer.data.prepare.source import Expectation
from trainer.data.prepare.store import Options, store
from trainer.data.storage import open_storage
from trainer.errors import DataError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 20


def batch(number: int) -> dict[bytes, Any]:
    """Crops of photographs as rows of 1,024 red, green and blue values, with the keys of the archive."""
    pictures = [np.asarray(photo(100 * number + n, size=(32, 32))) for n in range(PER_BATCH)]
    rows = np.stack([np.concatenate([picture[..., colour].ravel() for colour in range(3)]) for picture in pictures])
    labels = [(3 * n + number) % 10 for n in range(PER_BATCH)]
    return {b"batch_label": b"a batch", b"labels": labels, b"data": rows, b"filenames": [b"x.png"] * PER_BATCH}


def batches() -> dict[str, dict[bytes, Any]]:
    return {f"data_batch_{n}": batch(n) for n in range(1, 6)} | {"test_batch": batch(6)}


def members(protocol: int = 2, **replaced: bytes) -> list[tuple[str, bytes]]:
    meta = {b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072, b"num_cases_per_batch": PER_BATCH}
    files = {name: pickle.dumps(value, protocol) for name, value in {**batches(), "batches.meta": meta}.items()}
    files["readme.html"] = b"<html></html>"
    return [(f"cifar-10-batches-py/{name}", content) for name, content in (files | replaced).items()]


def archive(folder: Path, **replaced: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ARCHIVE).write_bytes(tar(members(**replaced), "w:gz"))
    return folder / ARCHIVE


def prepare(given: Path, root: Path, expect: Expectation | None = None, **options: Any) -> dict[str, str]:
    return store(open_cifar10(given, expect=expect), given, root, Options(workers=2, **options), expect=expect).digests


def refused(given: Path, expect: Expectation | None = None) -> str:
    with pytest.raises(DataError) as caught:
        prepare(given, given.parent / "root", expect)
    assert "\n" not in str(caught.value)
    assert not (given.parent / "root").exists()
    return str(caught.value)


@every_form
def test_pixels_and_labels_are_those_of_the_arrays(form: str, tmp_path: Path) -> None:
    import io

    prepare(archive(tmp_path), tmp_path / "root", form=form)
    for split, names in (("train", [f"data_batch_{n}" for n in range(1, 6)]), ("val", ["test_batch"])):
        rows = np.concatenate([batches()[name][b"data"] for name in names])
        labels = [label for name in names for label in batches()[name][b"labels"]]
        index = load_index(tmp_path / "root", split)
        storage = open_storage(index, tmp_path / "root")
        assert len(index) == len(rows)
        for sample, path in enumerate(index.paths):
            number = int(Path(path).stem)
            pixels = np.asarray(Image.open(io.BytesIO(storage.read(sample))))
            np.testing.assert_array_equal(pixels.transpose(2, 0, 1).ravel(), rows[number])
            assert index.classes[index.labels[sample]] == NAMES[labels[number]] == path.split("/")[1]
        storage.close()


def test_the_unpacked_folder_gives_the_same_data_set(tmp_path: Path) -> None:
    for name, content in members():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    wanted = prepare(archive(tmp_path / "a"), tmp_path / "first")
    assert prepare(tmp_path / "cifar-10-batches-py", tmp_path / "second") == wanted
    assert prepare(tmp_path, tmp_path / "third") == wanted
    assert prepare(tmp_path / "a", tmp_path / "fourth") == wanted


def test_checksum_and_counts_are_checked(tmp_path: Path) -> None:
    file = archive(tmp_path)
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    found = refused(file, CIFAR10)
    assert md5 in found
    assert CIFAR10.md5[ARCHIVE] in found
    small = Expectation("Small", {"train": 100, "val": 20}, 10, {ARCHIVE: md5}, {"train": 10, "val": 2})
    assert "holds 100 train images, Small has 101" in refused(
        file, dataclasses.replace(small, counts={"train": 101, "val": 20})
    )
    prepare(file, tmp_path / "root", small)


class Evil:
    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.where),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["batches.meta", "test_batch"])
def test_a_pickle_that_asks_for_more_than_arrays_is_refused_and_not_run(
    name: str, protocol: int, tmp_path: Path
) -> None:
    evil = pickle.dumps({b"label_names": [], b"labels": [], b"data": Evil(tmp_path / "run")}, protocol)
    found = refused(archive(tmp_path, **{name: evil}))
    assert f"{ARCHIVE}, {name} cannot be unpickled (it asks for posix.mkdir, which no array needs)" in found
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("code", [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n.", b"cos\nsystem\n(S'true'\ntR."])
def test_hand_written_pickles_are_refused(code: bytes, tmp_path: Path) -> None:
    assert "which no array needs" in refused(archive(tmp_path, test_batch=code))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({b"data": np.zeros((PER_BATCH, 3072), np.float32)}, "does not hold images"),
        ({b"data": np.zeros((PER_BATCH, 3071), np.uint8)}, "does not hold images"),
        ({b"labels": [10] * PER_BATCH}, "does not hold images"),
        ({b"labels": None}, "has no labels"),
        ({b"labels": 5}, "does not hold images"),
        ({b"data": b"text"}, "does not hold images"),
    ],
)
def test_batches_of_another_kind_are_refused(change: dict, says: str, tmp_path: Path) -> None:
    wrong = pickle.dumps({**batch(2), **change}, 2)
    found = refused(archive(tmp_path, data_batch_2=wrong))
    assert f"{ARCHIVE}, data_batch_2 {says}" in found


@pytest.mark.parametrize("names", [5, [b"cat"] * 10])
def test_class_names_of_another_kind_are_refused(names: object, tmp_path: Path) -> None:
    found = refused(archive(tmp_path, **{"batches.meta": pickle.dumps({b"label_names": names}, 2)}))
    assert "batches.meta does not hold a list of different class names" in found


def test_pickles_of_newer_protocols_and_labels_in_arrays_are_read(tmp_path: Path) -> None:
    in_arrays = {name: value | {b"labels": np.array(value[b"labels"])} for name, value in batches().items()}
    newer = {name: pickle.dumps(value, 5) for name, value in in_arrays.items()}
    found = prepare(archive(tmp_path / "new", **newer), tmp_path / "new_root")
    assert found == prepare(archive(tmp_path / "old"), tmp_path / "old_root")


def test_an_incomplete_or_damaged_archive_is_refused(tmp_path: Path) -> None:
    file = archive(tmp_path, data_batch_3=pickle.dumps(batch(3), 2)[:-20])
    assert "data_batch_3 cannot be unpickled" in refused(file)
    file.write_bytes(tar(members()[1:], "w:gz"))
    assert "has no data_batch_1" in refused(file)
    file.write_bytes(tar(members(), "w:gz")[:5000])
    assert f"{file}" in refused(file)
    assert "does not exist" in refused(tmp_path / "nowhere")
