"""The digits: a data set without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from trainer.data.index import load_index
from trainer.data.prepare import digits as digits_module
from trainer.data.prepare.digits import prepare_digits
from trainer.errors import DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "deep" / "digits"
    prepare_digits(root, workers=2)
    return root


def test_all_digits_are_there_and_every_class_is_split_four_to_one(root: Path) -> None:
    train, val = load_index(root, "train"), load_index(root, "val")
    assert train.classes == val.classes == list("0123456789")
    per_class = np.bincount(load_digits().target)
    np.testing.assert_array_equal(np.bincount(val.labels), per_class // 5)
    np.testing.assert_array_equal(np.bincount(train.labels), per_class - per_class // 5)
    assert {*train.heights, *train.widths, *val.heights, *val.widths} == {32}
    assert sorted(path.name for path in root.iterdir()) == ["index", "train", "val"]
    assert [path.name for path in root.parent.iterdir()] == ["digits"]


def test_images_show_the_digit_they_are_filed_under(root: Path) -> None:
    source = load_digits()
    index = load_index(root, "val")
    for sample in range(0, len(index), 37):
        number = int(Path(index.paths[sample]).stem)
        assert source.target[number] == index.labels[sample]
        small = np.asarray(Image.open(root / index.paths[sample]).convert("L").resize((8, 8), Image.Resampling.BOX))
        likeness = np.corrcoef(small.ravel(), source.images[number].ravel())[0, 1]
        assert likeness > 0.95


def test_a_second_call_does_nothing(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(digits_module, "_write_images", lambda folder: pytest.fail("written again"))
    assert prepare_digits(root).samples == {"train": 1442, "val": 355}


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        prepare_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise DataError("no")

    monkeypatch.setattr(digits_module, "prepare_folder", fail)
    monkeypatch.setattr(digits_module, "_write_images", lambda folder: (folder / "train").mkdir(parents=True))
    with pytest.raises(DataError, match="no"):
        prepare_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []
