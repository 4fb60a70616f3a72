"""Images in tar files look to both loaders as they do in files, and damage to them is named."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from image_tree import make_tree

from trainer.data import storage as storage_module
from trainer.data.batch import Batch, Loader
from trainer.data.dali import DaliLoader
from trainer.data.index import Index, load_index
from trainer.data.order import Augment, EvalOrder, Plan, TrainOrder
from trainer.data.prepare.imagenet import open_imagenet
from trainer.data.prepare.store import Options, store
from trainer.data.storage import open_storage, shard_path
from trainer.data.torchvision import TorchvisionLoader
from trainer.errors import DataError

LOADERS = [DaliLoader, TorchvisionLoader]
both = pytest.mark.parametrize("kind", LOADERS)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same photographs as a folder and as shards of about ten images."""
    folder = tmp_path_factory.mktemp("forms")
    source = make_tree(folder / "source", train=45, val=11)
    for form in ("folder", "shards"):
        options = Options(form, workers=2, shard_bytes=200_000)
        store(open_imagenet(source, None, expect=None), source, folder / form, options, expect=None)
    assert len(list((folder / "shards" / "shards").iterdir())) > 4
    return {form: folder / form for form in ("folder", "shards")}


def open_loader(kind: type, root: Path, plans: list[Plan], split: str = "train", **options: object) -> Loader:
    first = plans[0].geometry
    most = max(len(plan.ids) for plan in plans)
    return kind(load_index(root, split), root, image_size=first.size, kind=first.kind, max_batch=most, **options)


def batches(kind: type, root: Path, plans: list[Plan], split: str = "train") -> list[Batch]:
    loader = open_loader(kind, root, plans, split)
    try:
        return list(loader.load(plans))
    finally:
        loader.close()


def train_plans(index: Index, crop: str = "rrc", steps: int = 8, batch_size: int = 20) -> list[Plan]:
    return list(TrainOrder(index, Augment(64, crop=crop), seed=3, batch_size=batch_size).plans(0, steps))


@both
@pytest.mark.parametrize("crop", ["rrc", "pad", "eval"])
def test_folder_and_shards_give_the_same_pixels(kind: type, crop: str, roots: dict[str, Path]) -> None:
    split = "val" if crop == "eval" else "train"
    index = load_index(roots["shards"], split)
    plans = list(EvalOrder(index, Augment(64), batch_size=4).plans()) if crop == "eval" else train_plans(index, crop)
    files, shards = (batches(kind, roots[form], plans, split) for form in ("folder", "shards"))
    assert len(files) == len(plans)
    for a, b in zip(files, shards, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


def test_memory_given_to_dali_is_held_as_long_as_it_is_read(roots: dict[str, Path]) -> None:
    """DALI does not copy what it is given: streams that are dropped at once must not pull it away."""
    root = roots["shards"]
    plans = train_plans(load_index(root, "train"), steps=6, batch_size=9)
    wanted = [batch.images for batch in batches(DaliLoader, roots["folder"], plans)]
    loader = open_loader(DaliLoader, root, plans, prefetch=1)
    for dropped in range(4):
        stream = loader.load(plans)
        for _ in range(dropped):
            next(stream)
        del stream
        gc.collect()
        found = [batch.images for batch in loader.load(plans)]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    loader.close()


@pytest.fixture
def root(roots: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(roots["shards"], tmp_path / "copy"))


VICTIM = 13


def place(root: Path) -> tuple[Path, int, int]:
    """File, first byte and length of the victim."""
    index = load_index(root, "train")
    assert index.places is not None
    file = shard_path(root, "train", int(index.places.shards[VICTIM]))
    return file, int(index.places.offsets[VICTIM]), int(index.bytes[VICTIM])


def fault(kind: type, root: Path) -> str:
    plans = train_plans(load_index(root, "train"), crop="none", batch_size=5, steps=9)
    loader = open_loader(kind, root, plans, rank=3)
    stream = loader.load(plans)
    bad = next(number for number, plan in enumerate(plans) if VICTIM in plan.ids)
    good = plans[:bad]
    with pytest.raises(DataError) as caught:  # noqa: PT012 (the batches before it must arrive)
        for plan in good:
            assert next(stream).ids.tolist() == plan.ids.tolist()
        next(stream)
    loader.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@both
def test_damaged_bytes_are_named_with_tar_file_byte_sample_and_rank(kind: type, root: Path) -> None:
    file, at, size = place(root)
    with open(file, "r+b") as opened:
        opened.seek(at)
        opened.write(bytes(size))
    found = fault(kind, root)
    assert f"{file}, byte {at} (train/" in found
    assert f"sample {VICTIM} of train, rank 3" in found
    assert "changed since it was indexed" in found
    assert "prepare the data again from its source" in found


@both
def test_a_tar_file_that_is_too_short_is_named(kind: type, root: Path) -> None:
    file, at, size = place(root)
    os.truncate(file, at + size // 2)
    found = fault(kind, root)
    assert f"the file ends at byte {at + size // 2}" in found
    assert f"sample {VICTIM} of train, rank 3" in found


@both
def test_a_missing_tar_file_is_named(kind: type, root: Path) -> None:
    file, _, _ = place(root)
    file.unlink()
    plans = train_plans(load_index(root, "train"), crop="none", batch_size=45, steps=1)
    loader = open_loader(kind, root, plans)
    with pytest.raises(DataError, match="is the data folder mounted here"):
        list(loader.load(plans))
    loader.close()


def test_no_more_than_some_tar_files_stay_open(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(storage_module, "_KEPT_OPEN", 1)
    index = load_index(root, "train")
    before = len(os.listdir("/proc/self/fd"))
    storage = open_storage(index, root)
    sizes = [len(storage.read(sample)) for sample in range(len(index))]
    assert sizes == index.bytes.tolist()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    storage.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("what", ["gone", "changed"])
def test_places_that_are_not_the_recorded_ones_are_refused(what: str, root: Path) -> None:
    index = load_index(root, "train")
    file = root / "index" / "train.places.npz"
    if what == "gone":
        file.unlink()
    else:
        import numpy as np

        assert index.places is not None
        np.savez(file, shards=index.places.shards, offsets=index.places.offsets + 512)
    with pytest.raises(DataError, match="start the reste prepare that made it again"):
        load_index(root, "train")


def test_the_digest_is_of_content_and_not_of_places(roots: dict[str, Path]) -> None:
    files, shards = (load_index(roots[form], "train") for form in ("folder", "shards"))
    assert files.places is None
    assert shards.places is not None
    assert files.digest == shards.digest == replace(shards, places=None).digest


def losses_of(root: Path, runs: Path, name: str, loader: str) -> Iterator[float]:
    from trainings import QUICK, SMALL, losses, train_here

    given = [*SMALL, f"data.root={root}", f"data.loader={loader}", f"run.dir={runs}", f"run.name={name}"]
    assert train_here(str(QUICK), [*given, "train.max_steps=2", "train.batch_size=16"]) == [0]
    yield from losses(runs / name / "journal.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_training_on_shards_gives_the_losses_of_the_folder(loader: str, roots: dict[str, Path], tmp_path: Path) -> None:
    found = [list(losses_of(roots[form], tmp_path, f"{form}_{loader}", loader)) for form in ("folder", "shards")]
    assert len(found[0]) == 2
    assert found[0] == found[1]
