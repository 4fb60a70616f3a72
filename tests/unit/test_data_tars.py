"""Damaged archives are named with the byte where reading failed, and are read once."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import imagenet_sources as made
import pytest
from imagenet_sources import every_form, prepare, refused

from trainer.data.prepare.tars import OnePass, members

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def headers(content: bytes) -> dict[str, int]:
    """Where each member's header begins, of the archive and of the archives in it, by tarfile itself."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            found[member.name] = member.offset
            if member.name.endswith(".tar"):
                inner = headers(archive.extractfile(member).read())
                found |= {name: member.offset_data + at for name, at in inner.items()}
    return found


def damage(file: Path, change: Callable[[bytearray], bytearray | None]) -> dict[str, int]:
    """Change a file; returns where its members were."""
    content = bytearray(file.read_bytes())
    where = headers(bytes(content))
    changed = change(content)
    file.write_bytes(content if changed is None else changed)
    return where


def flip(content: bytearray, at: int) -> None:
    content[at] ^= 0x55


def bytes_named(message: str) -> list[int]:
    return [int(number) for number in re.findall(r"byte (\d+)", message)]


@every_form
def test_a_damaged_outer_header_is_named_with_its_byte(form: str, tmp_path: Path) -> None:
    source, root = made.official(tmp_path / "source"), tmp_path / "root"
    keep = (source / TRAIN).read_bytes()
    at = headers(keep)["n02389026.tar"]
    damage(source / TRAIN, lambda content: flip(content, at + 3))
    found = refused(source, root, form=form)
    assert f"{source / TRAIN} at byte {at} is damaged (no header can be read here)" in found
    (source / TRAIN).write_bytes(keep)
    assert prepare(source, root, form=form).digests == prepare(source, tmp_path / "other").digests


def test_a_damaged_inner_header_is_named_with_its_byte_in_the_outer_file(tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    at = headers((source / TRAIN).read_bytes())["n02012849_24.JPEG"]
    where = damage(source / TRAIN, lambda content: flip(content, at + 150))
    found = refused(source, tmp_path / "root")
    assert f"n02012849.tar at byte {where['n02012849.tar']}" in found
    assert bytes_named(found)[-1] == at


def test_a_truncated_archive_is_named_with_the_image_that_is_cut(tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    at = headers((source / TRAIN).read_bytes())["n02389026_17.JPEG"]
    damage(source / TRAIN, lambda content: content[: at + 512 + 100])
    found = refused(source, tmp_path / "root")
    assert f"n02389026_17.JPEG at byte {at} is damaged" in found
    assert "what is done is kept" in found


def test_an_archive_cut_between_two_members_is_not_taken_for_whole(tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    at = headers((source / VAL).read_bytes())["ILSVRC2012_val_00000006.JPEG"]
    damage(source / VAL, lambda content: content[:at])
    found = refused(source, tmp_path / "root")
    assert f"{source / VAL} at byte {at} is damaged (it ends here, without an end mark)" in found


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", bytes(600) + b"x" * 600])
def test_a_file_that_is_no_archive_is_named(content: bytes, tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    (source / VAL).write_bytes(content)
    assert f"{source / VAL} " in refused(source, tmp_path / "root")


@pytest.mark.parametrize("cut", [30, 300, -9, -1])
def test_a_truncated_kit_is_named_with_the_byte_near_it(cut: int, tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    content = (source / DEVKIT).read_bytes()
    (source / DEVKIT).write_bytes(content[:cut])
    found = refused(source, tmp_path / "root")
    assert str(source / DEVKIT) in found
    assert len(content[:cut]) in bytes_named(found)


def test_a_flipped_bit_in_the_kit_is_noticed(tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    plain = gzip.decompress((source / DEVKIT).read_bytes())
    content = bytearray(gzip.compress(plain, compresslevel=0))
    flip(content, content.index(b"Read me"))
    (source / DEVKIT).write_bytes(content)
    assert str(source / DEVKIT) in refused(source, tmp_path / "root")


def test_a_damaged_shard_of_a_webdataset_is_named_with_its_byte(tmp_path: Path) -> None:
    source = made.webdataset(tmp_path / "source")
    file = source / "imagenet1k-train-0001.tar"
    places = headers(file.read_bytes())
    name = sorted(places, key=places.__getitem__)[4]
    damage(file, lambda content: flip(content, places[name]))
    assert f"{file} at byte {places[name]} is damaged" in refused(source, tmp_path / "root")


def zero(content: bytearray, at: int) -> None:
    content[at : at + 512] = bytes(512)


def test_a_hole_of_zeros_is_not_taken_for_the_end_of_an_archive(tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    keep = (source / TRAIN).read_bytes()
    for name, within in (("n02389026.tar", str(source / TRAIN)), ("n02012849_24.JPEG", "n02012849.tar")):
        at = damage(source / TRAIN, lambda content, name=name: zero(content, headers(content)[name]))[name]
        found = refused(source, tmp_path / "root")
        assert within in found
        assert bytes_named(found)[-1] == at
        assert "is damaged (zeros stand where a header should, and more follows)" in found
        (source / TRAIN).write_bytes(keep)
    shards = made.webdataset(tmp_path / "shards")
    places = damage(
        shards / "imagenet1k-train-0001.tar", lambda content: zero(content, sorted(headers(content).values())[4])
    )
    assert sorted(places.values())[4] in bytes_named(refused(shards, tmp_path / "other"))


def test_an_archive_is_read_once_and_its_checksum_is_that_of_all_its_bytes(tmp_path: Path) -> None:
    source = made.official(tmp_path / "source")
    content = (source / TRAIN).read_bytes() + bytes(20_000)
    (source / TRAIN).write_bytes(content)
    opened = OnePass(source / TRAIN)
    names = [member.name for member in members(opened, "here")]
    assert names == [name for name, _ in made.class_tars()]
    assert opened.md5() == hashlib.md5(content).hexdigest()
    assert opened._seen == len(content)
    opened.close()
    opened.close()


def test_reading_back_and_forth_gives_the_bytes_of_the_file(tmp_path: Path) -> None:
    import numpy as np

    content = np.random.default_rng(0).bytes(5000)
    (tmp_path / "file").write_bytes(content)
    opened = OnePass(tmp_path / "file")
    rng = np.random.default_rng(1)
    for at, size in rng.integers(0, [5200, 700], size=(300, 2)).tolist():
        assert opened.seek(at) == at
        assert opened.read(size) == content[at : at + size]
        assert opened.tell() == at + len(content[at : at + size])
    assert opened.md5() == hashlib.md5(content).hexdigest()
    opened.close()
