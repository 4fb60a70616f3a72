"""Files with the labels of a flat validation folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.prepare.labels import find_label_file, read_labels
from trainer.errors import DataError

CLASSES = ["n01", "n02", "n03"]


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "a.JPEG n02\nb.JPEG n01\n"),
        ("labels.txt", "\n  val/a.JPEG\tn02\r\nb.JPEG   n01 64 64\n\n"),
        ("labels.txt", "\ufeffa.JPEG 1\nb.JPEG 0\n"),
        ("labels.csv", "file,label\na.JPEG,n02\nb.JPEG,n01\n"),
        ("labels.csv", "a.JPEG,1\nb.JPEG,n01\n"),
    ],
)
def test_names_numbers_headers_and_separators_are_understood(tmp_path: Path, name: str, text: str) -> None:
    assert read_labels(written(tmp_path, name, text), CLASSES) == {"a.JPEG": 1, "b.JPEG": 0}


def test_kaggles_solution_file_is_understood(tmp_path: Path) -> None:
    rows = ["ImageId,PredictionString", "ILSVRC2012_val_00048981,n03 85 1 499 272 ", "ILSVRC2012_val_1,n01 1 2 n01 5 6"]
    text = "\n".join(rows)
    labels = read_labels(written(tmp_path, "LOC_val_solution.csv", text), CLASSES)
    assert labels == {"ILSVRC2012_val_00048981": 2, "ILSVRC2012_val_1": 0}


def test_a_class_named_by_a_number_wins_over_the_number_of_a_class(tmp_path: Path) -> None:
    assert read_labels(written(tmp_path, "labels.txt", "a 7\nb 3\n"), ["3", "7"]) == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.JPEG n02\nb.JPEG n99\n", ":2: 'b.JPEG n99'"),
        ("a.JPEG 3\n", "number from 0 to 2"),
        ("490\n361\n", ":1: '490'"),
        ("a.JPEG n02\na.JPEG n01\n", "another label"),
    ],
)
def test_lines_that_cannot_be_right_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labels(written(tmp_path, "labels.txt", text), CLASSES)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_given_file_goes_before_those_found(tmp_path: Path) -> None:
    assert find_label_file(tmp_path, None) is None
    found = written(tmp_path, "val_labels.csv", "")
    given = written(tmp_path, "mine.txt", "")
    assert find_label_file(tmp_path, None) == found
    assert find_label_file(tmp_path, given) == given
    with pytest.raises(DataError, match="does not exist"):
        find_label_file(tmp_path, tmp_path / "none.txt")


def test_a_binary_label_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(tmp_path / "labels.txt", CLASSES)
