"""Random damage to images, tar files and indexes: all of it is named, none of it crashes, hangs or takes memory."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_tree import make_tree
from spawn import run_ranks

from trainer.data.dali import DaliLoader
from trainer.data.index import load_index
from trainer.data.order import Augment, TrainOrder
from trainer.data.prepare.folder import prepare_folder
from trainer.data.prepare.imagenet import open_imagenet
from trainer.data.prepare.store import Options, store
from trainer.data.prepare.verify import verify
from trainer.data.replacing import Replacing
from trainer.data.torchvision import TorchvisionLoader
from trainer.errors import DataError

LOADERS = {"dali": DaliLoader, "torchvision": TorchvisionLoader}
OTHERS = [b"", b"<html>404</html>", b"GIF89a" + bytes(50), b"\x89PNG\r\n\x1a\n" + bytes(50), b"\xff\xd8\xff\xe0"]


def damaged(content: bytes, rng: np.random.Generator, *, is_jpeg: bool) -> bytes:
    """The content cut, with flipped bits, with a wrong header or another size in it; never the content itself."""
    while True:
        changed = bytearray(content)
        kind = int(rng.integers(6 if is_jpeg else 3))
        if kind == 0:
            changed = changed[: int(rng.integers(len(content) - 1))]
        elif kind == 1:
            for at in rng.integers(len(content), size=int(rng.integers(1, 9))).tolist():
                changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            at, size = int(rng.integers(len(content))), int(rng.integers(1, 700))
            changed[at : at + size] = rng.bytes(len(changed[at : at + size]))
        elif kind == 3:
            changed[:30] = rng.bytes(30)
        elif kind == 4:
            changed = bytearray(OTHERS[int(rng.integers(len(OTHERS)))])
        else:
            at = max(changed.find(b"\xff\xc0"), changed.find(b"\xff\xc2"))
            # From a little larger to a gigapixel, which a decoder would believe.
            side = int(rng.choice([130, 5_000, 20_000, 65_000]))
            changed[at + 5 : at + 9] = side.to_bytes(2, "big") * 2
        if bytes(changed) != content:
            return bytes(changed)


def load_all(loader: str, root: Path, crop: str, *, replaces: bool) -> str | None:
    """Two epochs of a data set; the error that ended them. Anything but a `DataError` is let out."""
    try:
        index = load_index(root, "train")
        order = TrainOrder(index, Augment(32, crop=crop), seed=4, batch_size=8)
        kind = "resize" if crop == "pad" else "window"
        inner = LOADERS[loader](index, root, image_size=32, kind=kind, max_batch=8)
    except DataError as error:
        return str(error)
    made = Replacing(inner, order, root, limit=10_000, rank=0) if replaces else inner
    try:
        ids = [
            sample for batch in made.load(order.plans(0, 2 * order.steps_per_epoch)) for sample in batch.ids.tolist()
        ]
    except DataError as error:
        return str(error)
    finally:
        made.close()
    out = {finding.sample: finding.step for finding in order.quarantine.before(10**9)}
    assert len(ids) == 2 * len(index)
    assert not set(ids[len(index) :]) & {sample for sample, step in out.items() if step < order.steps_per_epoch}
    return None


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz_images(whole: Path, root: Path, victims: int, seed: int, crops: list[str]) -> dict[str, float]:
    """Damage images of `root`, a copy of `whole`, and let everything read them. Top level, for `run_ranks`."""
    rng = np.random.default_rng(seed)
    assert verify(whole, workers=1).damaged == []
    for loader in LOADERS:
        for crop in crops:
            assert load_all(loader, whole, crop, replaces=False) is None
    usual = peak_mib()
    index = load_index(root, "train")
    files = [root / index.paths[sample] for sample in rng.permutation(len(index))[:victims].tolist()]
    for file in files:
        file.write_bytes(damaged(file.read_bytes(), rng, is_jpeg=True))
    named = {damage.file for damage in verify(root, workers=1).damaged}
    assert named == {str(file) for file in files}
    for loader in LOADERS:
        for crop in crops:
            ended = load_all(loader, root, crop, replaces=False)
            assert ended is None or ("\n" not in ended and any(str(file) in ended for file in files)), ended
            assert load_all(loader, root, crop, replaces=True) is None
    shutil.rmtree(root / "index")
    with pytest.raises(DataError) as caught:
        prepare_folder(root, workers=1)
    assert "\n" not in str(caught.value)
    left_out = {str(root / file.path) for file in prepare_folder(root, workers=1, skip_bad=True).quarantined}
    assert left_out <= named
    assert len(left_out) > victims / 4
    return {"usual": usual, "peak": peak_mib()}


def fuzz_shards(root: Path, trials: int, seed: int, loaders: list[str]) -> dict[str, float]:
    """Damage one tar file or file of the index after the other, and mend it. Top level, for `run_ranks`."""
    rng = np.random.default_rng(seed)
    for loader in loaders:
        assert load_all(loader, root, "rrc", replaces=False) is None
    assert verify(root, workers=1).damaged == []
    usual = peak_mib()
    files = sorted(file for folder in ("shards", "index") for file in (root / folder).iterdir())
    for trial in range(trials):
        file = files[trial % len(files)]
        content = file.read_bytes()
        file.write_bytes(damaged(content, rng, is_jpeg=False))
        found = {damage.file for damage in verify(root, workers=1).damaged}
        assert found == {str(file)}, (file, trial)
        for loader in loaders:
            for replaces in (False, True):
                ended = load_all(loader, root, "rrc", replaces=replaces)
                assert ended is None or ("\n" not in ended and str(root) in ended), ended
        file.write_bytes(content)
    assert verify(root, workers=1).damaged == []
    return {"usual": usual, "peak": peak_mib()}


def sources(folder: Path, count: int) -> Iterator[Path]:
    source = make_tree(folder / "source", train=count, val=3, size=(120, 100))
    for form in ("folder", "shards"):
        options = Options(form, workers=2, shard_bytes=30_000)
        store(open_imagenet(source, None, expect=None), source, folder / form, options, expect=None)
        yield folder / form


def within_twice(measured: dict[str, float]) -> None:
    assert measured["peak"] < 2 * measured["usual"], measured


@pytest.mark.timeout(120)
def test_damaged_images_are_named_and_neither_crash_nor_swell_what_reads_them(tmp_path: Path) -> None:
    whole, _ = sources(tmp_path, 60)
    root = Path(shutil.copytree(whole, tmp_path / "root"))
    [measured] = run_ranks(fuzz_images, 1, whole, root, 20, 0, ["rrc"], join=False)
    within_twice(measured)


@pytest.mark.timeout(120)
def test_damaged_tar_files_and_indexes_are_named_and_neither_crash_nor_swell_what_reads_them(tmp_path: Path) -> None:
    _, root = sources(tmp_path, 12)
    [measured] = run_ranks(fuzz_shards, 1, root, 27, 0, ["torchvision"], join=False)
    within_twice(measured)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_200_damaged_images(tmp_path: Path) -> None:
    whole, _ = sources(tmp_path, 420)
    root = Path(shutil.copytree(whole, tmp_path / "root"))
    [measured] = run_ranks(fuzz_images, 1, whole, root, 200, 1, ["rrc", "pad"], join=False, timeout_s=850)
    within_twice(measured)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_100_damaged_tar_files_and_indexes(tmp_path: Path) -> None:
    _, root = sources(tmp_path, 12)
    [measured] = run_ranks(fuzz_shards, 1, root, 108, 1, ["torchvision", "dali"], join=False, timeout_s=850)
    within_twice(measured)
