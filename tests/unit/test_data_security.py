"""Data from anywhere: archives, indexes and images that mean harm are refused in one line."""

from __future__ import annotations

import ast
import gzip
import io
import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imagenet_sources as made
import numpy as np
import pytest
from image_tree import make_tree
from imagenet_sources import refused

from trainer.data.index import Index, Paths, Places, load_index, save_indexes
from trainer.data.prepare import tars
from trainer.data.prepare.check import check_content
from trainer.data.prepare.cifar10 import open_cifar10
from trainer.data.prepare.devkit import read_devkit
from trainer.data.prepare.folder import prepare_folder
from trainer.errors import DataError

SOURCES = Path(tars.__file__).resolve().parents[3]


def claiming(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header tells of another size."""
    changed, at = bytearray(content), 2
    while changed[at + 1] not in (0xC0, 0xC2):
        at += 2 + int.from_bytes(changed[at + 2 : at + 4], "big")
    changed[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(changed)


def huge_png() -> bytes:
    """100,000 x 100,000 pixels in a few bytes."""
    header = (100_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(300_000))), (b"IEND", b"")):
        parts += [len(body).to_bytes(4, "big"), kind, body, zlib.crc32(kind + body).to_bytes(4, "big")]
    return b"".join(parts)


def test_images_that_claim_more_pixels_than_any_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    small = made.pictures()[0].content
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    for content, extension in ((claiming(small, 65_000, 65_000), ".jpeg"), (huge_png(), ".png")):
        assert "decompression bomb" in (check_content(content, extension).bad or "")


def with_member(kind: Callable[[tarfile.TarFile], None]) -> bytes:
    """An archive of two classes' first images, and one member more."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for picture in made.pictures()[:5:4]:
            made.add(archive, picture.name.replace(".JPEG", ".jpg"), picture.content)
        kind(archive)
    return out.getvalue()


def named(name: str) -> Callable[[tarfile.TarFile], None]:
    return lambda archive: made.add(archive, name, made.pictures()[1].content)


def linked(kind: bytes, name: str = "n01440764_99.jpg", to: str = "n01440764_10.jpg") -> Callable[..., None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, to
        archive.addfile(info)

    return add


HARMFUL = {
    "up": (named("../n01440764_99.jpg"), "leads out of the archive"),
    "up within": (named("a/../../n01440764_99.jpg"), "leads out of the archive"),
    "absolute": (named("/tmp/n01440764_99.jpg"), "leads out of the archive"),
    "symbolic link": (linked(tarfile.SYMTYPE, to="/etc/passwd"), "is a link or no plain file"),
    "hard link": (linked(tarfile.LNKTYPE), "is a link or no plain file"),
    "device": (linked(tarfile.CHRTYPE), "is a link or no plain file"),
    "pipe": (linked(tarfile.FIFOTYPE), "is a link or no plain file"),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_no_archive_reader_follows_names_or_links_out_of_its_folder(harm: str, tmp_path: Path) -> None:
    kind, says = HARMFUL[harm]
    content = with_member(kind)
    shards = made.webdataset(tmp_path / "shards")
    (shards / "imagenet1k-train-0001.tar").write_bytes(content)
    assert says in refused(shards, tmp_path / "root")
    official = made.official(tmp_path / "official")
    inner = [(name, content if number == 0 else tar) for number, (name, tar) in enumerate(made.class_tars())]
    (official / "ILSVRC2012_img_train.tar").write_bytes(made.tar(inner))
    assert says in refused(official, tmp_path / "root2")
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(content))
    for read in (lambda: open_cifar10(packed, expect=None), lambda: read_devkit(packed, None)):
        with pytest.raises(DataError, match=says):
            read()
    assert {path.name for path in tmp_path.iterdir()} <= {"shards", "official", "root", "root2", "packed.tar.gz"}


@pytest.mark.parametrize("label", ["../../x", "a/b", "..", ".hidden"])
def test_a_class_name_is_no_path(label: str, tmp_path: Path) -> None:
    source = made.webdataset(tmp_path / "source")
    members = [("a.jpg", made.pictures()[0].content), ("a.cls", label.encode())]
    (source / "imagenet1k-train-0000.tar").write_bytes(made.tar(members))
    assert "cannot be stored as" in refused(source, tmp_path / "root")


def long_header(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a member that claims a length."""
    info = tarfile.TarInfo("n01440764_99.jpg")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("size", [-512, -1024, 1 << 30, 1 << 50, (1 << 63) - 1])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.timeout(20)
def test_a_header_that_claims_any_length_takes_neither_memory_nor_for_ever(
    size: int, kind: bytes, tmp_path: Path
) -> None:
    source = made.webdataset(tmp_path / "source")
    file = source / "imagenet1k-train-0000.tar"
    file.write_bytes(long_header(size, kind) + bytes(5120))
    found = refused(source, tmp_path / "root")
    assert str(file) in found
    assert size < 0 or " claims " in found


def index_with(**changes: object) -> Index:
    base = Index(
        split="train",
        paths=Paths.of(["train/a/1.png", "train/b/2.png"]),
        labels=np.array([0, 1]),
        heights=np.array([4, 4], np.int32),
        widths=np.array([4, 4], np.int32),
        bytes=np.array([9, 9]),
        crc32=np.array([1, 2], np.uint32),
        classes=["a", "b"],
    )
    return replace(base, **changes)


UNSOUND: dict[str, tuple[dict[str, object], str]] = {
    "up": ({"paths": Paths.of(["train/a/1.png", "train/../../b"])}, "leads out of the data root"),
    "absolute": ({"paths": Paths.of(["train/a/1.png", "/etc/passwd"])}, "leads out of the data root"),
    "nul": ({"paths": Paths.of(["train/a/1.png", "train/b\0.png"])}, "leads out of the data root"),
    "offsets": ({"paths": Paths(b"train/a/1.png", np.array([0, 20, 13]))}, "do not follow each other"),
    "fewer paths": ({"paths": Paths.of(["train/a/1.png"])}, "it has not 2 paths"),
    "label": ({"labels": np.array([0, 2])}, "labels beyond its 2 classes"),
    "negative label": ({"labels": np.array([0, -1])}, "labels beyond"),
    "size": ({"heights": np.array([4, 0], np.int32)}, "images without a size"),
    "length": ({"bytes": np.array([9, -1])}, "images without a size"),
    "type": ({"labels": np.array([0.0, 1.0])}, "not 2 numbers of type int64"),
    "places": ({"places": Places(np.array([0, 0], np.int32), np.array([512, -512]))}, "negative places"),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_an_index_that_is_not_sound_is_refused_whatever_its_digest(what: str, tmp_path: Path) -> None:
    changes, says = UNSOUND[what]
    save_indexes(tmp_path, [index_with(**changes)])
    with pytest.raises(DataError) as caught:
        load_index(tmp_path, "train")
    assert says in str(caught.value)
    assert f"{tmp_path / 'index' / 'train'}" in str(caught.value)


class Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("harm-was-done"),)


def test_arrays_with_pickles_or_more_bytes_than_the_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_indexes(tmp_path, [index_with()])
    file = tmp_path / "index" / "train.npz"
    whole = file.read_bytes()
    np.savez(file, labels=np.array([Harm()], dtype=object), allow_pickle=True)
    refuse_index(tmp_path)
    file.write_bytes(pickle.dumps(Harm()))
    refuse_index(tmp_path)
    np.savez_compressed(file, labels=np.zeros(50_000_000, np.int64))
    refuse_index(tmp_path)
    claim = io.BytesIO()
    np.lib.format.write_array_header_1_0(claim, {"descr": "<i8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("labels.npy", claim.getvalue() + bytes(16))
    refuse_index(tmp_path)
    file.write_bytes(whole)
    assert len(load_index(tmp_path, "train")) == 2
    assert not (tmp_path / "harm-was-done").exists()


def refuse_index(root: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_index(root, "train")
    assert str(root / "index" / "train.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[]", "null", '{"version": 1, "classes": 3}', '{"version": [1]}', '{"version": 1, "digests": "x"}'],
)
def test_any_json_in_place_of_the_summary_is_refused(text: str, tmp_path: Path) -> None:
    save_indexes(tmp_path, [index_with()])
    (tmp_path / "index" / "index.json").write_text(text)
    with pytest.raises(DataError) as caught:
        load_index(tmp_path, "train")
    assert str(tmp_path / "index" / "index.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changing_the_list_of_what_was_left_out_changes_the_digest_of_the_data(tmp_path: Path) -> None:
    from trainer.config import load_config
    from trainer.data.datasets import open_datasets

    root = make_tree(tmp_path / "tree")
    (root / "train" / "c0" / "zzz.JPEG").write_bytes(b"bad")
    prepare_folder(root, skip_bad=True)
    config = load_config(None, [f"data.root={root}"])
    with_list = open_datasets(config)
    assert with_list.left_out == ("train/c0/zzz.JPEG",)
    (root / "train" / "c0" / "zzz.JPEG").unlink()
    prepare_folder(root)
    without = open_datasets(config)
    assert (with_list.train.digest, with_list.val.digest) == (without.train.digest, without.val.digest)
    assert with_list.digest != without.digest
    file = root / "index" / "index.json"
    found = json.loads(file.read_text())
    found["quarantined"] = [{"path": "train/c0/other.JPEG", "what": "bad"}]
    file.write_text(json.dumps(found))
    with pytest.raises(DataError, match="does not have the digest that it names"):
        open_datasets(config)


def test_nothing_is_unpickled_but_by_the_reader_of_cifar10() -> None:
    for path in (SOURCES / "trainer" / "data").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if path.name != "pickles.py":
                assert not {"pickle", "dill", "marshal", "shelve"} & set(names), path
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("np.load", "eval", "exec", "torch.load", "os.system"), path
