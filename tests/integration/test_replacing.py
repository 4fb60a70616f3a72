"""Loaders that go on without what they cannot read: same batches for both, for shards, and ahead of time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from image_tree import make_tree, store_in_both_forms

from trainer.data.batch import Batch
from trainer.data.dali import DaliLoader
from trainer.data.faults import UnreadableError
from trainer.data.index import load_index
from trainer.data.order import Augment, TrainOrder
from trainer.data.quarantine import Finding
from trainer.data.replacing import Replacing
from trainer.data.spoiled import Spoiled
from trainer.data.storage import Files, shard_path
from trainer.data.torchvision import TorchvisionLoader
from trainer.errors import DataError

LOADERS = [DaliLoader, TorchvisionLoader]
both = pytest.mark.parametrize("kind", LOADERS)
every_form = pytest.mark.parametrize("form", ["folder", "shards"])
BAD = (4, 9, 13)
STEPS = 12  # two epochs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("replacing")
    source = make_tree(folder / "source", train=30, val=3, size=(90, 80))
    return store_in_both_forms(folder, source, shard_bytes=30_000)


@pytest.fixture
def roots(made: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {form: Path(shutil.copytree(root, tmp_path / form)) for form, root in made.items()}


def spoil(root: Path, sample: int) -> None:
    """Zeros over the whole content."""
    index = load_index(root, "train")
    if index.places is None:
        (root / index.paths[sample]).write_bytes(bytes(int(index.bytes[sample])))
        return
    with open(shard_path(root, "train", int(index.places.shards[sample])), "r+b") as file:
        file.seek(int(index.places.offsets[sample]))
        file.write(bytes(int(index.bytes[sample])))


def open_loader(kind: type, root: Path, *, limit: int = 100, prefetch: int = 3) -> tuple[Replacing, TrainOrder]:
    index = load_index(root, "train")
    order = TrainOrder(index, Augment(32, crop="none"), seed=4, batch_size=5)
    inner = kind(index, root, image_size=32, kind="window", max_batch=5, prefetch=prefetch)
    return Replacing(inner, order, root, limit=limit, rank=0), order


def batches(kind: type, root: Path, start: int = 0) -> tuple[list[Batch], TrainOrder]:
    loader, order = open_loader(kind, root)
    try:
        return list(loader.load(order.plans(start, STEPS))), order
    finally:
        loader.close()


@every_form
@both
def test_a_bad_sample_is_replaced_as_if_it_had_been_out_from_the_start(
    kind: type, form: str, roots: dict[str, Path]
) -> None:
    root = roots[form]
    known, order = open_loader(kind, root)
    order.quarantine.add(Finding(sample, "", "", 0, 0) for sample in BAD)
    wanted = list(known.load(order.plans(0, STEPS)))
    known.close()
    for sample in BAD:
        spoil(root, sample)
    found, order = batches(kind, root)
    assert [batch.plan.step for batch in found] == list(range(STEPS))
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.flips, b.flips)
        assert torch.equal(a.images, b.images)
        assert not set(BAD) & set(a.ids.tolist())
        index = order.index
        np.testing.assert_array_equal(a.labels.numpy(), index.labels[a.ids.numpy()])
    listed = order.quarantine.before(STEPS)
    assert sorted(finding.sample for finding in listed) == list(BAD)
    assert {finding.path for finding in listed} == {load_index(root, "train").paths[sample] for sample in BAD}


@both
def test_a_later_start_gives_the_same_batches_whether_the_list_is_known_or_found_anew(
    kind: type, roots: dict[str, Path]
) -> None:
    root = roots["folder"]
    for sample in BAD:
        spoil(root, sample)
    whole, _ = batches(kind, root)
    rest, _ = batches(kind, root, start=5)
    assert [batch.ids.tolist() for batch in rest] == [batch.ids.tolist() for batch in whole[5:]]


class FailsOnce(Files):
    """A file system that loses one read of a sample."""

    victim = 9
    failures = 1

    def read(self, sample: int) -> bytes:
        if sample == self.victim and self.failures:
            self.failures -= 1
            raise OSError("stale file handle")
        return super().read(sample)


@pytest.mark.parametrize(("failures", "out"), [(1, []), (3, [9])])  # the second read is for the message
def test_one_failed_read_is_forgiven_and_two_in_a_row_are_not(
    failures: int, out: list[int], roots: dict[str, Path]
) -> None:
    loader, order = open_loader(TorchvisionLoader, roots["folder"])
    storage = FailsOnce(order.index, roots["folder"])
    storage.failures = failures
    loader._loader._storage = storage
    list(loader.load(order.plans(0, STEPS)))
    loader.close()
    assert [finding.sample for finding in order.quarantine.before(STEPS)] == out


@both
def test_more_than_the_limit_end_it(kind: type, roots: dict[str, Path]) -> None:
    for sample in BAD:
        spoil(roots["folder"], sample)
    loader, order = open_loader(kind, roots["folder"], limit=2)
    with pytest.raises(DataError, match=r"3 training images cannot be read, data\.max_quarantined=2 ") as caught:
        list(loader.load(order.plans(0, STEPS)))
    loader.close()
    assert "\n" not in str(caught.value)


@both
def test_a_data_folder_that_is_gone_is_no_bad_image(kind: type, roots: dict[str, Path], tmp_path: Path) -> None:
    loader, order = open_loader(kind, roots["folder"])
    roots["folder"].rename(tmp_path / "elsewhere")
    with pytest.raises(UnreadableError, match="is the data folder mounted here"):
        list(loader.load(order.plans(0, STEPS)))
    loader.close()
    assert order.quarantine.before(STEPS) == []


@every_form
@both
def test_a_spoiled_sample_is_damaged_for_the_loader_alone(
    kind: type, form: str, roots: dict[str, Path], tmp_path: Path
) -> None:
    root, noted = roots[form], []
    index = load_index(root, "train")
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    order = TrainOrder(index, Augment(32, crop="none"), seed=4, batch_size=5)
    storage = Spoiled(frozenset([9]), noted.append, tmp_path / "run" / "faults").open(index, root)
    loader = kind(index, root, image_size=32, kind="window", max_batch=5, storage=storage)
    with pytest.raises(UnreadableError, match="its content changed since it was indexed") as caught:
        list(loader.load(order.plans(0, STEPS)))
    loader.close()
    assert caught.value.sample == 9
    assert str(root) in str(caught.value)
    assert set(noted) == {9}
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before
