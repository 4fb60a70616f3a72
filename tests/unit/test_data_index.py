"""The index on disk: whole, verified, and refused in one line otherwise."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from trainer.data import index as index_module
from trainer.data.index import Index, OddFile, Paths, load_index, load_summary, save_indexes
from trainer.errors import DataError


def small_index(split: str = "train", n: int = 4) -> Index:
    return Index(
        split=split,
        paths=Paths.of(f"{split}/k{i % 2}/bild-\u00e4-{i}.JPEG" for i in range(n)),
        labels=np.arange(n, dtype=np.int64) % 2,
        heights=np.arange(n, dtype=np.int32) + 10,
        widths=np.arange(n, dtype=np.int32) + 20,
        bytes=np.arange(n, dtype=np.int64) + 2**33,
        crc32=np.arange(n, dtype=np.uint32) + 2**31,
        classes=["k0", "k1"],
    )


def saved(root: Path) -> Path:
    save_indexes(root, [small_index("train"), small_index("val", 2)], odd=[OddFile("train/k0/x", "CMYK colours")])
    return root


def message(root: Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        load_index(root, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_index_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    loaded, original = load_index(saved(tmp_path), "train"), small_index()
    assert list(loaded.paths) == list(original.paths)
    for name in ("labels", "heights", "widths", "bytes", "crc32"):
        found, wanted = getattr(loaded, name), getattr(original, name)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype
    assert (loaded.classes, loaded.split, loaded.digest) == (["k0", "k1"], "train", original.digest)
    summary = load_summary(tmp_path)
    assert summary.samples == {"train": 4, "val": 2}
    assert summary.odd == [OddFile("train/k0/x", "CMYK colours")]
    assert summary.odd_counts == {"CMYK colours": 1}
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [
        "index.json",
        "train.npz",
        "val.npz",
    ]


def test_digest_changes_with_everything_in_the_index() -> None:
    base = small_index()
    others = [dataclasses.replace(base, split="val"), dataclasses.replace(base, classes=["k0", "k2"])]
    others.append(dataclasses.replace(base, paths=Paths.of([*base.paths[:3], "other"])))
    for name in ("labels", "heights", "widths", "bytes", "crc32"):
        column = getattr(base, name).copy()
        column[2] += 1
        others.append(dataclasses.replace(base, **{name: column}))
    assert len({index.digest for index in [base, *others]}) == 1 + len(others)
    assert small_index().digest == base.digest


def test_long_lists_of_odd_files_are_counted_and_shortened(tmp_path: Path) -> None:
    odd = [OddFile(f"{i}", "grayscale") for i in range(1500)] + [OddFile("x", "CMYK colours")]
    summary = save_indexes(tmp_path, [small_index()], odd=odd)
    assert summary.odd_counts == {"grayscale": 1500, "CMYK colours": 1}
    assert len(summary.odd) == 1001


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: (root / "index" / "index.json").unlink(), "has no index"),
        (lambda root: (root / "index" / "index.json").write_text("{"), "cannot be read"),
        (lambda root: (root / "index" / "index.json").write_text('{"version": 99}'), "version 99"),
        (lambda root: (root / "index" / "index.json").write_text('{"version": 1}'), "cannot be read"),
        (lambda root: (root / "index" / "train.npz").unlink(), "cannot be read"),
        (lambda root: (root / "index" / "train.npz").write_bytes(b""), "cannot be read"),
        (lambda root: (root / "index" / "train.npz").write_bytes(b"PK\x03\x04 no"), "cannot be read"),
        (lambda root: save_indexes(root / "other", [small_index(n=3)])
            and (root / "other/index/train.npz").replace(root / "index/train.npz"), "digest"),
    ],
)  # fmt: skip
def test_a_damaged_index_is_refused_with_the_command_that_mends_it(tmp_path: Path, damage, says: str) -> None:
    damage(saved(tmp_path))
    found = message(tmp_path)
    assert says in found
    assert f"reste prepare folder {tmp_path}" in found


def test_a_flipped_bit_in_the_arrays_is_noticed(tmp_path: Path) -> None:
    file = saved(tmp_path) / "index" / "train.npz"
    content = bytearray(file.read_bytes())
    where = content.find(b"bild") + 1
    content[where] ^= 1
    file.write_bytes(content)
    assert "index" in message(tmp_path)


def test_missing_root_and_missing_split_say_so(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "nowhere")
    assert "no split 'test'" in message(saved(tmp_path), "test")


def test_a_write_that_fails_leaves_the_old_file_and_no_stump(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail(file) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        index_module.write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_index_json_is_written_after_the_arrays_it_vouches_for(tmp_path: Path, monkeypatch) -> None:
    written: list[str] = []
    original = index_module.write_atomically
    monkeypatch.setattr(
        index_module,
        "write_atomically",
        lambda path, write: (written.append(path.name), original(path, write))[1],
    )
    saved(tmp_path)
    assert written == ["train.npz", "val.npz", "index.json"]
    assert json.loads((tmp_path / "index" / "index.json").read_text())["version"] == 1


def test_paths_behave_like_a_list_of_names() -> None:
    names = ["a/b.JPEG", "", "\u00e9/\udce9.png", "z"]
    paths = Paths.of(names)
    assert list(paths) == names
    assert (len(paths), paths[-1], paths[1:3]) == (4, "z", names[1:3])
    assert paths.encoded(0) == b"a/b.JPEG"
    with pytest.raises(IndexError):
        paths[4]
    assert len(Paths.of([])) == 0
