"""`reste prepare imagenet`: four layouts, one data set; labels, checksums and counts are checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import imagenet_sources as made
import numpy as np
import pytest
from imagenet_sources import SORTED, every_form, pictures, prepare, refused
from PIL import Image

from trainer.data.index import load_index
from trainer.data.prepare import store as store_module
from trainer.data.prepare.folder import prepare_folder
from trainer.data.prepare.imagenet import IMAGENET
from trainer.data.prepare.source import Expectation
from trainer.data.storage import open_storage
from trainer.errors import DataError


def wds_with_json(folder: Path) -> Path:
    return made.webdataset(folder, json_names=True)


MAKERS = [made.official, made.kaggle, made.tree, made.webdataset, wds_with_json]
every_source = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the same images as a plain tree, indexed in place."""
    return prepare_folder(made.tree(tmp_path_factory.mktemp("plain") / "tree"), workers=2).digests


@every_form
@every_source
def test_every_layout_gives_the_same_digest(make: Callable, form: str, tmp_path: Path, expected: dict) -> None:
    summary = prepare(make(tmp_path / "source"), tmp_path / "root", form=form)
    assert summary.digests == expected
    assert summary.samples == {"train": 16, "val": 8}
    assert not (tmp_path / "root" / "index" / "begun.jsonl").exists()
    for split in ("train", "val"):
        index = load_index(tmp_path / "root", split)
        storage = open_storage(index, tmp_path / "root")
        wanted = {f"{p.split}/{p.wnid}/{p.name}": p for p in pictures() if p.split == split}
        assert set(index.paths) == set(wanted)
        for sample, path in enumerate(index.paths):
            assert storage.read(sample) == wanted[path].content
            assert index.labels[sample] == SORTED.index(wanted[path].wnid)
            assert index.crc32[sample] == zlib.crc32(wanted[path].content)
        storage.close()


def test_validation_labels_are_numbers_of_the_kit_and_not_places_in_sorted_order(tmp_path: Path) -> None:
    prepare(made.official(tmp_path / "source"), tmp_path / "root")
    index = load_index(tmp_path / "root", "val")
    found = {Path(path).name: index.classes[label] for path, label in zip(index.paths, index.labels, strict=True)}
    by_kit = {f"ILSVRC2012_val_{n:08d}.JPEG": made.BY_ID[identity - 1] for n, identity in enumerate(made.TRUTH, 1)}
    by_sorting = {f"ILSVRC2012_val_{n:08d}.JPEG": SORTED[identity - 1] for n, identity in enumerate(made.TRUTH, 1)}
    assert found == by_kit
    assert all(by_sorting[name] != label for name, label in by_kit.items()), "the test could not tell them apart"


def test_shards_are_plain_tars_of_about_the_size_asked_for(tmp_path: Path) -> None:
    import tarfile

    prepare(made.official(tmp_path / "source"), tmp_path / "root", form="shards")
    found = {}
    files = sorted((tmp_path / "root" / "shards").iterdir())
    assert [file.name for file in files[:2]] == ["train-000000.tar", "train-000001.tar"]
    for file in files:
        assert file.stat().st_size < 12_000 + 10_000
        with tarfile.open(file) as archive:
            found |= {member.name: archive.extractfile(member).read() for member in archive}
    assert found == {f"{p.split}/{p.wnid}/{p.name}": p.content for p in pictures()}


def test_shards_of_ours_are_a_source_too(tmp_path: Path, expected: dict) -> None:
    prepare(made.official(tmp_path / "source"), tmp_path / "first", form="shards")
    assert prepare(tmp_path / "first" / "shards", tmp_path / "second").digests == expected


def test_a_tree_on_the_same_disk_is_linked_and_not_copied(tmp_path: Path) -> None:
    source = made.tree(tmp_path / "source")
    prepare(source, tmp_path / "root")
    for picture in pictures():
        name = f"{picture.split}/{picture.wnid}/{picture.name}"
        assert (source / name).samefile(tmp_path / "root" / name)
    assert not list((tmp_path / "root").rglob(".*"))


def small_imagenet(source: Path) -> Expectation:
    """What is published of the small ImageNet."""
    md5 = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in source.iterdir() if file.is_file()}
    known = {p.name: p.wnid for p in pictures() if p.split == "val"}
    return Expectation("Small", {"train": 16, "val": 8}, 4, md5, {"train": 4, "val": 2}, known)


def test_what_is_published_of_the_archives_is_checked_while_they_are_read(tmp_path: Path, expected: dict) -> None:
    source = made.official(tmp_path / "source")
    assert prepare(source, tmp_path / "root", expect=small_imagenet(source)).digests == expected


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
def test_a_wrong_checksum_is_refused_and_can_be_accepted(name: str, tmp_path: Path, expected: dict) -> None:
    source = made.official(tmp_path / "source")
    wanted = small_imagenet(source)
    wrong = dataclasses.replace(wanted, md5={**wanted.md5, name: "0" * 32})
    found = refused(source, tmp_path / "root", expect=wrong)
    assert str(source / name) in found
    assert wanted.md5[name] in found
    assert "--expect any" in found
    assert prepare(source, tmp_path / "root").digests == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"counts": {"train": 17, "val": 8}}, "16 train images, Small has 17"),
        ({"classes": 5}, "4 classes, Small has 5"),
        ({"per_class": {"val": 3}}, "2 val images of class n01440764, Small has 3 of each"),
        ({"known": {"ILSVRC2012_val_00000001.JPEG": SORTED[2]}}, "class n01440764, it is n02389026"),
    ],
)
def test_other_counts_and_labels_than_the_published_ones_are_refused(change: dict, says: str, tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    found = refused(source, tmp_path / "root", expect=dataclasses.replace(small_imagenet(source), **change))
    assert says in found
    assert "--expect any" in found


@pytest.mark.parametrize("make", [made.kaggle, made.tree], ids=lambda make: make.__name__)
def test_folders_of_another_size_are_refused_before_anything_is_decoded(make: Callable, tmp_path: Path) -> None:
    assert "16 train images, ImageNet has 1,281,167" in refused(
        make(tmp_path / "source"), tmp_path / "root", expect=IMAGENET
    )
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        ([3, 1, 4, 2, 2, 3, 1, 5], "line 8 of ILSVRC2012_validation_ground_truth.txt is no class"),
        ([3, 1, 4, 1, 1, 3, 1, 4], "no line of ILSVRC2012_validation_ground_truth.txt is class 2"),
        (made.TRUTH[:-1], "is none of the 7 images"),
        ([*made.TRUTH, 1], "lacks validation image 9 of 9"),
    ],
)
def test_a_kit_that_contradicts_itself_or_the_images_is_refused(truth: list[int], says: str, tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    (source / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(made.devkit(truth))
    assert says in refused(source, tmp_path / "root")


def test_training_classes_that_the_kit_does_not_know_are_refused(tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    (source / "ILSVRC2012_img_train.tar").write_bytes(made.tar(made.class_tars()[1:]))
    assert "class n01440764" in refused(source, tmp_path / "root")


def test_layouts_are_told_apart_or_asked_for(tmp_path: Path, expected: dict) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no layout of ImageNet" in refused(tmp_path / "empty", tmp_path / "root")
    assert "is no folder" in refused(tmp_path / "nowhere", tmp_path / "root")
    both = made.official(tmp_path / "both")
    for split in ("train", "val"):
        (made.tree(tmp_path / "tree") / split).rename(both / split)
    assert "as official and as tree: choose with --layout" in refused(both, tmp_path / "root")
    assert prepare(both, tmp_path / "root", layout="tree").digests == expected
    (both / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    found = refused(both, tmp_path / "other", layout="official")
    assert "has no ILSVRC2012_devkit_t12.tar.gz" in found


def test_kaggles_list_of_synsets_must_be_the_classes(tmp_path: Path) -> None:
    source = made.kaggle(tmp_path / "source")
    (source / "LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    assert "LOC_synset_mapping.txt" in refused(source, tmp_path / "root")
    (source / "LOC_val_solution.csv").unlink()
    assert "has no LOC_val_solution.csv" in refused(source, tmp_path / "root")


def repacked(folder: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Path:
    """WebDataset shards whose members went through a function."""
    import tarfile

    for file in made.webdataset(folder).iterdir():
        with tarfile.open(file) as archive:
            members = [(member.name, archive.extractfile(member).read()) for member in archive]
        file.write_bytes(made.tar(change(members)))
    return folder


def test_numbers_of_classes_that_are_not_the_sorted_ones_are_refused_without_a_list(tmp_path: Path, expected) -> None:
    shift = {str(number).encode(): str((number + 1) % 4).encode() for number in range(4)}
    source = repacked(
        tmp_path / "source",
        lambda members: [(name, shift[content] if name.endswith(".cls") else content) for name, content in members],
    )
    assert "put the names in the order of their numbers into classes.txt" in refused(source, tmp_path / "root")
    (source / "classes.txt").write_text("\n".join(SORTED[number - 1] for number in range(4)))
    assert prepare(source, tmp_path / "other").digests == expected


def test_classes_may_be_names_or_numbers_in_json(tmp_path: Path, expected: dict) -> None:
    ways = [lambda number: SORTED[number], str, int]

    def in_json(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        changed = []
        for at, (name, content) in enumerate(members):
            if name.endswith(".cls"):
                about = {"label": ways[at % 3](int(content)), "filename": f"{Path(name).stem}.JPEG"}
                name, content = name.replace(".cls", ".json"), json.dumps(about).encode()
            changed.append((name, content))
        return changed

    assert prepare(repacked(tmp_path / "source", in_json), tmp_path / "root").digests == expected


def test_shards_may_lie_in_a_folder_of_each_split(tmp_path: Path, expected: dict) -> None:
    source = made.webdataset(tmp_path / "source")
    for split, pattern in (("train", "*train-*"), ("val", "*validation-*")):
        (source / split).mkdir()
        for number, file in enumerate(sorted(source.glob(pattern))):
            file.rename(source / split / f"{number:05d}.tar")
    assert prepare(source, tmp_path / "root").digests == expected


def test_a_complete_folder_still_has_to_hold_what_is_expected(tmp_path: Path) -> None:
    source = made.tree(tmp_path / "source")
    prepare(source, tmp_path / "root")
    with pytest.raises(DataError, match=r"root holds 16 train images, ImageNet has 1,281,167: complete it, or"):
        prepare(source, tmp_path / "root", expect=IMAGENET)


def test_samples_without_names_take_their_numbers_as_classes(tmp_path: Path) -> None:
    names: dict[str, str] = {}

    def anonymous(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [(f"{names.setdefault(Path(name).stem, f'{len(names):05d}')}{Path(name).suffix}", content)
                for name, content in members]  # fmt: skip

    prepare(repacked(tmp_path / "source", anonymous), tmp_path / "root")
    index = load_index(tmp_path / "root", "train")
    assert index.classes == ["0000", "0001", "0002", "0003"]
    wnids = {p.content: p.wnid for p in pictures()}
    for path, label in zip(index.paths, index.labels, strict=True):
        assert SORTED.index(wnids[(tmp_path / "root" / path).read_bytes()]) == label


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda members: [m for m in members if not m[0].endswith(".cls")], "has no class"),
        (lambda members: [m for m in members if not m[0].endswith(".jpg")], "has a class but no image"),
        (lambda members: [*members, members[1]], "which another image is already"),
        (lambda members: [*members, ("x.cls", b"4"), ("x.jpg", members[1][1])], "class number 4 of 4"),
        (lambda members: [*members, ("../x.cls", b"a/../../b"), ("../x.jpg", b"")], "leads out of the archive"),
    ],
)
def test_samples_that_cannot_be_understood_are_named(change: Callable, says: str, tmp_path: Path) -> None:
    assert says in refused(repacked(tmp_path / "source", change), tmp_path / "root")


@every_form
def test_large_images_are_shrunk_and_small_ones_left_as_they_are(form: str, tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    summary = prepare(source, tmp_path / "root", form=form, max_side=50)
    assert summary.max_side == 50
    index = load_index(tmp_path / "root", "train")
    storage = open_storage(index, tmp_path / "root")
    before = {f"{p.split}/{p.wnid}/{p.name}": p.content for p in pictures()}
    shrunk = 0
    for sample, path in enumerate(index.paths):
        import io

        old, new = (Image.open(io.BytesIO(content)) for content in (before[path], storage.read(sample)))
        assert (new.height, new.width) == (index.heights[sample], index.widths[sample])
        if max(old.size) <= 50:
            assert storage.read(sample) == before[path]
            continue
        shrunk += 1
        assert max(new.size) == 50
        assert abs(new.width / new.height - old.width / old.height) < 0.03
        again = np.asarray(old.convert("RGB").resize(new.size, Image.Resampling.BOX), float)
        assert np.abs(np.asarray(new.convert("RGB"), float) - again).mean() < 12
    assert 0 < shrunk < 16
    storage.close()


def bad_picture(source: Path) -> None:
    """Break an image inside the archive of its class, leaving the archive whole."""
    tars = [(name, bytearray(content)) for name, content in made.class_tars()]
    at = tars[1][1].index(b"\xff\xd8")
    tars[1][1][at : at + 40] = bytes(40)
    (source / "ILSVRC2012_img_train.tar").write_bytes(made.tar([(name, bytes(content)) for name, content in tars]))


@every_form
def test_a_bad_image_is_named_with_its_place_or_left_out(form: str, tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    bad_picture(source)
    found = refused(source, tmp_path / "root", form=form)
    assert found.startswith("1 of 24 files")
    assert f"{source}/ILSVRC2012_img_train.tar, n02012849.tar at byte " in found
    assert "n02012849_10.JPEG at byte" in found
    summary = prepare(source, tmp_path / "root", form=form, skip_bad=True)
    assert summary.samples == {"train": 15, "val": 8}
    assert [file.path for file in summary.quarantined] == ["train/n02012849/n02012849_10.JPEG"]


def test_a_second_call_does_nothing_and_another_form_is_refused(tmp_path: Path, monkeypatch) -> None:
    source = made.official(tmp_path / "source")
    first = prepare(source, tmp_path / "root")
    begun = tmp_path / "root" / "index" / "begun.jsonl"
    begun.write_text("of a call that was killed at its very end")
    monkeypatch.setattr(store_module, "_take_all", lambda *a: pytest.fail("prepared again"))
    assert prepare(source, tmp_path / "root") == first
    assert not begun.exists()
    with pytest.raises(DataError, match="in another form"):
        prepare(source, tmp_path / "root", form="shards")
    with pytest.raises(DataError, match="in another form"):
        prepare(source, tmp_path / "root", max_side=20)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "precious").write_text("x")
    assert "not empty" in refused(source, tmp_path / "root")
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["precious"]


def test_what_is_half_made_is_no_data_set_and_goes_on_only_as_it_began(tmp_path: Path) -> None:
    source, root = made.official(tmp_path / "source"), tmp_path / "root"
    bad_picture(source)
    refused(source, root)
    with pytest.raises(DataError, match="with the same SOURCE"):
        load_index(root, "train")
    with pytest.raises(DataError, match="half made"):
        prepare_folder(root)
    assert "was begun from" in refused(source, root, form="shards")
    assert "was begun from" in refused(made.kaggle(tmp_path / "kaggle"), root)
    (root / "index" / "begun.jsonl").write_bytes(b"nonsense\n")
    assert f"remove {root}" in refused(source, root)


def test_two_preparations_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    from trainer.data.prepare.begun import Begun, Settings

    source, root = made.official(tmp_path / "source"), tmp_path / "root"
    with Begun(root, Settings(str(source), "folder", None)):
        assert "another reste prepare is at work" in refused(source, root)
    assert prepare(source, root).samples == {"train": 16, "val": 8}


@every_form
def test_what_is_in_its_place_is_not_decoded_again_unless_it_changed(form: str, tmp_path: Path, monkeypatch) -> None:
    source, root = made.official(tmp_path / "source"), tmp_path / "root"
    bad_picture(source)
    refused(source, root, form=form)
    decoded: list[bytes] = []
    original = store_module.check_content
    monkeypatch.setattr(
        store_module, "check_content", lambda content, *a: (decoded.append(content), original(content, *a))[1]
    )
    whole = made.official(tmp_path / "whole")
    (whole / "ILSVRC2012_img_train.tar").replace(source / "ILSVRC2012_img_train.tar")
    prepare(source, root, form=form)
    assert decoded == [p.content for p in pictures() if p.name == "n02012849_10.JPEG"]


def test_half_written_lines_and_half_written_shards_are_made_again(tmp_path: Path, expected: dict) -> None:
    source, root = made.official(tmp_path / "source"), tmp_path / "root"
    bad_picture(source)
    refused(source, root, form="shards")
    begun, newest = root / "index" / "begun.jsonl", sorted((root / "shards").glob("val-*"))[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[:1000] + bytes(len(content) - 1000))
    for torn in (b'["train/n02389026/n02389026_10.JPEG", 12', b""):
        begun.write_bytes(begun.read_bytes() + torn)
        refused(source, root, form="shards")
    whole = made.official(tmp_path / "whole")
    (whole / "ILSVRC2012_img_train.tar").replace(source / "ILSVRC2012_img_train.tar")
    assert prepare(source, root, form="shards").digests == expected
    index = load_index(root, "val")
    storage = open_storage(index, root)
    assert [zlib.crc32(storage.read(sample)) for sample in range(len(index))] == index.crc32.tolist()
    storage.close()
