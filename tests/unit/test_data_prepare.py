"""`reste prepare folder`: what it finds, what it refuses, and that it leaves nothing half made."""

from __future__ import annotations

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_tree import make_tree, photo, save_jpeg
from PIL import Image

from trainer.data.index import load_index, load_summary
from trainer.data.prepare import folder as folder_module
from trainer.data.prepare.folder import prepare_folder
from trainer.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("made"), size=(60, 50))


@pytest.fixture
def tree(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tree"))


def refused(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        prepare_folder(root, workers=2, **options)
    assert "\n" not in str(caught.value)
    assert not (root / "index").exists()
    return str(caught.value)


def test_every_image_is_indexed_with_its_size_length_and_checksum(tree: Path) -> None:
    summary = prepare_folder(tree, workers=2)
    assert summary.samples == {"train": 12, "val": 6}
    index = load_index(tree, "train")
    expected = sorted(path.relative_to(tree).as_posix() for path in (tree / "train").rglob("*.JPEG"))
    assert list(index.paths) == expected
    assert index.classes == ["c0", "c1", "c2"]
    for sample, name in enumerate(index.paths):
        content = (tree / name).read_bytes()
        assert index.labels[sample] == int(name.split("/")[1][1:])
        assert (index.widths[sample], index.heights[sample]) == (60, 50)
        assert (index.bytes[sample], index.crc32[sample]) == (len(content), zlib.crc32(content))
    assert sorted(path.name for path in (tree / "index").iterdir()) == ["index.json", "train.npz", "val.npz"]


def test_the_index_does_not_depend_on_threads_or_repetition(tree: Path) -> None:
    first = prepare_folder(tree, workers=1)
    assert prepare_folder(tree, workers=4) == first


def test_progress_ends_at_the_number_of_files(tree: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare_folder(tree, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (18, 18)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_file_is_named(tree: Path, split: str) -> None:
    victim = next((tree / split / "c1").iterdir())
    victim.write_bytes(victim.read_bytes()[:-40])
    found = refused(tree)
    assert str(victim) in found
    assert "truncated" in found
    assert "--skip-bad" in found


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "empty"), (b"<html>404</html>", "no image"), (bytes(3000), "no image"), (b"\xff\xd8\xff\xe0", "")],
)
def test_files_that_are_no_images_are_named(tree: Path, content: bytes, says: str) -> None:
    victim = next((tree / "train" / "c1").iterdir())
    victim.write_bytes(content)
    found = refused(tree)
    assert str(victim) in found
    assert says in found


def test_all_bad_files_are_named_up_to_twenty(tmp_path: Path, monkeypatch) -> None:
    make_tree(tmp_path, train=24, val=3, size=(20, 20))
    victims = sorted((tmp_path / "train").rglob("*.JPEG"))[:22]
    for victim in victims:
        victim.write_bytes(b"no")
    found = refused(tmp_path)
    assert found.startswith("22 of 27 files")
    assert sum(str(victim) in found for victim in victims) == 20
    assert "and 2 more" in found


def test_skip_bad_leaves_files_out_and_records_them(tree: Path) -> None:
    victim = next((tree / "train" / "c1").iterdir())
    victim.write_bytes(b"no")
    summary = prepare_folder(tree, workers=2, skip_bad=True)
    name = victim.relative_to(tree).as_posix()
    assert [file.path for file in summary.quarantined] == [name]
    assert load_summary(tree).quarantined == summary.quarantined
    index = load_index(tree, "train")
    assert len(index) == 11
    assert name not in list(index.paths)


def test_skip_bad_does_not_leave_a_class_empty(tree: Path) -> None:
    for victim in (tree / "val" / "c2").iterdir():
        victim.write_bytes(b"no")
    assert "class c2 in val/" in refused(tree, skip_bad=True)


def test_a_failed_call_keeps_the_index_that_was_there(tree: Path) -> None:
    before = prepare_folder(tree, workers=2)
    victim = next((tree / "train" / "c1").iterdir())
    victim.write_bytes(b"no")
    with pytest.raises(DataError):
        prepare_folder(tree, workers=2)
    assert load_summary(tree) == before
    assert not (tree / "index" / "partial.jsonl").exists()


def test_missing_folders_say_what_belongs_where(tmp_path: Path) -> None:
    assert "nowhere does not exist" in refused(tmp_path / "nowhere")
    assert "train does not exist" in refused(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    assert "val does not exist" in refused(tmp_path)
    (tmp_path / "val").mkdir()
    assert "train has no images of class a" in refused(tmp_path)
    (tmp_path / "train" / "a").rmdir()
    assert "train has no class folders" in refused(tmp_path)


def test_an_empty_class_folder_is_refused(tree: Path) -> None:
    (tree / "train" / "c9").mkdir()
    (tree / "val" / "c9").mkdir()
    assert "has no images of class c9" in refused(tree)


@pytest.mark.parametrize(("foreign", "says"), [("c9", "has c9 besides"), (None, "lacks c1")])
def test_classes_of_val_that_differ_from_train_are_refused(tree: Path, foreign: str | None, says: str) -> None:
    if foreign:
        shutil.copytree(tree / "val" / "c0", tree / "val" / foreign)
    else:
        shutil.rmtree(tree / "val" / "c1")
    assert says in refused(tree)


def flatten(tree: Path) -> list[str]:
    lines = []
    for path in sorted((tree / "val").rglob("*.JPEG")):
        path.rename(tree / "val" / path.name)
        lines.append(f"{path.name} {path.parent.name}")
    for name in ("c0", "c1", "c2"):
        (tree / "val" / name).rmdir()
    return lines


def test_a_flat_val_folder_takes_its_labels_from_a_file(tree: Path) -> None:
    (tree / "val_labels.txt").write_text("\n".join(flatten(tree)))
    prepare_folder(tree, workers=2)
    index = load_index(tree, "val")
    assert list(index.paths) == [f"val/{i:03d}.JPEG" for i in range(6)]
    assert index.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_named_label_file_is_used(tree: Path, tmp_path: Path) -> None:
    lines = flatten(tree)
    assert "no class folders" in refused(tree)
    (tmp_path / "mine.csv").write_text("\n".join(line.replace(" ", ",") for line in lines))
    prepare_folder(tree, workers=2, val_labels=tmp_path / "mine.csv")
    assert load_index(tree, "val").labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_and_files_must_match_one_to_one(tree: Path) -> None:
    lines = flatten(tree)
    (tree / "val_labels.txt").write_text("\n".join(lines[1:]))
    assert "does not name val/000.JPEG" in refused(tree)
    (tree / "val_labels.txt").write_text("\n".join([*lines, "ghost.JPEG c0"]))
    assert "names ghost.JPEG, which is not there" in refused(tree)
    (tree / "val_labels.txt").write_text("\n".join(line.replace("c2", "c1") for line in lines))
    assert "no images of class c2" in refused(tree)


def test_unusual_files_are_recorded_and_used(tree: Path) -> None:
    image, where = photo(3, size=(40, 30)), tree / "train" / "c0"
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("CMYK").save(where / "cmyk.JPEG")
    image.convert("L").save(where / "gray.JPEG")
    image.save(where / "png.JPEG", format="PNG")
    save_jpeg(image, where / "turned.JPEG", exif=exif)
    (where / "Thumbs.db").write_bytes(b"x")
    (where / "._hidden.JPEG").write_bytes(b"x")
    summary = prepare_folder(tree, workers=2)
    found = {Path(odd.path).name: odd.what for odd in summary.odd}
    assert found == {
        "cmyk.JPEG": "CMYK colours",
        "gray.JPEG": "grayscale",
        "png.JPEG": "PNG named .jpeg",
        "turned.JPEG": "EXIF orientation 6, not applied",
        "Thumbs.db": "ignored: no image by its name",
    }
    index = load_index(tree, "train")
    assert len(index) == 16
    turned = list(index.paths).index("train/c0/turned.JPEG")
    assert (index.widths[turned], index.heights[turned]) == (40, 30)


@pytest.mark.parametrize(("name", "mode", "says"), [("a.JPEG", "GIF", "GIF"), ("b.png", "I;16", "I;16")])
def test_kinds_that_loaders_would_decode_differently_are_refused(tree: Path, name: str, mode: str, says: str) -> None:
    file = tree / "train" / "c0" / name
    if mode == "GIF":
        photo(1, size=(20, 20)).save(file, format="GIF")
    else:
        Image.fromarray(np.zeros((20, 20), np.uint16)).save(file, format="PNG")
    assert f"{says} " in refused(tree)


def test_decompression_bombs_are_refused(tree: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 60 - 1)
    assert "bomb" in refused(tree)


def test_a_corrupt_exif_block_does_not_matter(tree: Path) -> None:
    victim = next((tree / "train" / "c0").iterdir())
    content = victim.read_bytes()
    block = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x63\xff\xff"
    victim.write_bytes(content[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + content[2:])
    assert prepare_folder(tree, workers=2).samples["train"] == 12


def test_images_may_lie_in_folders_below_their_class_and_behind_links(tree: Path, tmp_path: Path) -> None:
    deep = tree / "train" / "c0" / "images"
    save_jpeg(photo(8, size=(30, 30)), deep / "x.jpg")
    (tmp_path / "linked").mkdir()
    for split in ("train", "val"):
        os.symlink(tree / split, tmp_path / "linked" / split)
    prepare_folder(tmp_path / "linked", workers=2)
    assert "train/c0/images/x.jpg" in list(load_index(tmp_path / "linked", "train").paths)
    assert not (tree / "index").exists()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tree: Path, monkeypatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "save_indexes", full)
    with pytest.raises(DataError, match=r"cannot write .*No space left on device"):
        prepare_folder(tree, workers=2)


def test_what_was_checked_is_not_decoded_again_unless_it_changed(tree: Path, monkeypatch) -> None:
    from trainer.data.prepare import scan as scan_module

    monkeypatch.setattr(folder_module, "save_indexes", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_folder(tree, workers=2)
    monkeypatch.undo()
    with open(tree / "index" / "partial.jsonl", "a") as memory:
        memory.write('["train/c0/half')
    changed = next((tree / "train" / "c1").iterdir())
    save_jpeg(photo(99, size=(70, 20)), changed)
    decoded: list[Path] = []
    original = scan_module.check_file
    monkeypatch.setattr(scan_module, "check_file", lambda path: (decoded.append(path), original(path))[1])
    prepare_folder(tree, workers=1)
    assert decoded == [changed]
    index = load_index(tree, "train")
    assert index.widths[list(index.paths).index(changed.relative_to(tree).as_posix())] == 70
