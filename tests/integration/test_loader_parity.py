"""DALI and Pillow show the same samples, cut alike, with pixels that differ by rounding only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_tree import make_tree, photo, save_jpeg
from PIL import Image

from trainer.data.batch import Batch, Loader
from trainer.data.dali import DaliLoader
from trainer.data.geometry import Geometry
from trainer.data.index import Index, load_index
from trainer.data.order import Augment, EvalOrder, Plan, TrainOrder, train_kind
from trainer.data.prepare.folder import prepare_folder
from trainer.data.torchvision import TorchvisionLoader

LOADERS = [DaliLoader, TorchvisionLoader]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_tree(tmp_path_factory.mktemp("photos"), train=45, val=11)
    prepare_folder(root, workers=2)
    return root


@pytest.fixture(scope="module")
def index(root: Path) -> Index:
    return load_index(root, "train")


def batches(kind: type, index: Index, root: Path, plans: list[Plan], **options: object) -> list[Batch]:
    first = plans[0].geometry
    most = max(len(plan.ids) for plan in plans)
    loader: Loader = kind(index, root, image_size=first.size, kind=first.kind, max_batch=most, **options)
    try:
        return list(loader.load(plans))
    finally:
        loader.close()


def apart(index: Index, root: Path, plans: list[Plan], **dali_options: object) -> torch.Tensor:
    """Absolute differences, float (N, S, S, 3), between the two loaders."""
    ours = batches(DaliLoader, index, root, plans, **dali_options)
    theirs = batches(TorchvisionLoader, index, root, plans)
    return torch.cat([(a.images.int() - b.images.int()).abs().float() for a, b in zip(ours, theirs, strict=True)])


def within_bounds(difference: torch.Tensor) -> bool:
    per_image = difference.mean(dim=(1, 2, 3))
    return bool(per_image.mean() <= 0.25 and per_image.max() <= 0.5 and difference.max() <= 12)


def train_plans(index: Index, augment: Augment, steps: int = 3) -> list[Plan]:
    return list(TrainOrder(index, augment, seed=11, batch_size=20).plans(0, steps))


def test_random_crops_differ_by_rounding_only(root: Path, index: Index) -> None:
    assert within_bounds(apart(index, root, train_plans(index, Augment(224), steps=9)))


@pytest.mark.parametrize("crop", ["rrc", "pad"])
def test_workers_are_not_in_the_pixels(root: Path, index: Index, crop: str) -> None:
    plans = train_plans(index, Augment(64, crop=crop))
    one, seven = (batches(DaliLoader, index, root, plans, workers=workers) for workers in (1, 7))
    assert all(torch.equal(a.images, b.images) for a, b in zip(one, seven, strict=True))


@pytest.mark.parametrize("crop", ["rrc", "pad", "none"])
@pytest.mark.parametrize("image_size", [64, 160])
def test_no_pixel_of_training_differs_by_more_than_two(root: Path, index: Index, image_size: int, crop: str) -> None:
    """Lines and columns are each rounded once, by either library."""
    difference = apart(index, root, train_plans(index, Augment(image_size, crop=crop, pad=9)))
    assert difference.max() <= 2
    assert (difference > 1).float().mean() <= 1e-5
    assert difference.mean() <= 0.1


@pytest.mark.parametrize("short", [None, 40, 300])
def test_no_pixel_of_evaluation_differs_by_more_than_one(root: Path, short: int | None) -> None:
    """Also where the crop is larger than what it is cut from, or the image is enlarged."""
    val = load_index(root, "val")
    difference = apart(val, root, list(EvalOrder(val, Augment(128, eval_resize=short), batch_size=4).plans()))
    assert difference.max() <= 1
    assert difference.mean() <= 0.1


def test_without_antialias_the_bounds_do_not_hold(root: Path, index: Index) -> None:
    assert not within_bounds(apart(index, root, train_plans(index, Augment(96)), antialias=False))


def windows_of_result_size(index: Index, size: int) -> Plan:
    """Windows of exactly (size, size), so that no resize touches what was decoded."""
    plan = next(TrainOrder(index, Augment(size), seed=5, batch_size=len(index)).plans(0, 1))
    rng = np.random.default_rng(0)
    top, left = rng.integers(0, plan.heights - size + 1), rng.integers(0, plan.widths - size + 1)
    windows = np.stack([top, left, np.full_like(top, size), np.full_like(top, size)], axis=1).astype(np.int32)
    none = np.zeros((0, 2), np.int32)
    return replace(plan, geometry=Geometry("window", size, windows, none, none))


@pytest.mark.parametrize("kind", LOADERS)
def test_decoded_crops_are_bit_equal_to_a_cut_from_the_whole_image(root: Path, index: Index, kind: type) -> None:
    plan = windows_of_result_size(index, 131)
    (batch,) = batches(kind, index, root, [plan])
    for position, sample in enumerate(plan.ids.tolist()):
        top, left, height, width = plan.geometry.windows[position].tolist()
        with Image.open(root / index.paths[sample]) as image:
            expected = np.asarray(image.convert("RGB"))[top : top + height, left : left + width]
        np.testing.assert_array_equal(batch.images[position].numpy(), expected)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("crop", ["rrc", "pad"])
def test_ranks_together_see_what_one_sees_alone(root: Path, index: Index, kind: type, crop: str) -> None:
    augment = Augment(48, crop=crop)

    def epoch(world: int) -> dict[tuple[int, int], tuple]:
        found = {}
        for rank in range(world):
            order = TrainOrder(index, augment, seed=2, batch_size=14, rank=rank, world=world)
            for batch in batches(kind, index, root, list(order.plans(0, 4))):
                assert (batch.images.dtype, batch.images.shape[1:]) == (torch.uint8, (48, 48, 3))
                columns = (batch.ids.tolist(), batch.labels.tolist(), batch.flips.tolist(), batch.images)
                for sample, label, flip, image in zip(*columns, strict=True):
                    assert label == index.labels[sample]
                    found[batch.plan.step, sample] = (flip, image.numpy().tobytes())
        return found

    alone = epoch(1)
    assert len(alone) == 45
    assert [epoch(world) == alone for world in (2, 3, 4)] == [True] * 3


@pytest.mark.parametrize("kind", LOADERS)
def test_empty_slices_are_batches_too(root: Path, kind: type) -> None:
    val = load_index(root, "val")
    orders = [EvalOrder(val, Augment(32), batch_size=5, rank=rank, world=4) for rank in range(4)]
    found = [batches(kind, val, root, list(order.plans())) for order in orders]
    assert [[len(batch.ids) for batch in rank] for rank in found] == [
        [1, 1, 0],
        [1, 1, 0],
        [1, 1, 0],
        [2, 2, 1],
    ]
    assert all(batch.images.shape == (len(batch.ids), 32, 32, 3) for rank in found for batch in rank)
    ids = [int(i) for step in range(3) for rank in found for i in rank[step].ids]
    assert ids == list(range(11))


@pytest.mark.parametrize("kind", LOADERS)
def test_nothing_but_empty_slices_is_fine(root: Path, index: Index, kind: type) -> None:
    plans = list(EvalOrder(index, Augment(32), batch_size=1, rank=0, world=2).plans())
    assert [len(batch.ids) for batch in batches(kind, index, root, plans)] == [0] * 45


def odd_files(folder: Path) -> None:
    image = photo(5, size=(90, 70))
    exif = Image.Exif()
    exif[0x0112] = 6
    save_jpeg(image, folder / "turned.JPEG", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.JPEG", quality=90)
    image.convert("L").save(folder / "gray.JPEG", quality=90)
    image.save(folder / "png.JPEG", format="PNG")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("P").save(folder / "palette.png")
    image.save(folder / "bmp.bmp")
    image.save(folder / "webp.webp", quality=90)
    image.save(folder / "tiff.tiff")
    image.save(folder / "progressive.JPEG", progressive=True)
    image.resize((1, 1)).save(folder / "pixel.JPEG")
    image.resize((3, 400)).save(folder / "thin.JPEG")
    image.resize((3000, 2500)).save(folder / "huge.JPEG")


def test_unusual_files_look_the_same_to_both_loaders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        odd_files(tmp_path / split / "a")
    prepare_folder(tmp_path, workers=2)
    index = load_index(tmp_path, "train")
    for plans in (
        list(TrainOrder(index, Augment(64, scale=(0.9, 1.0)), seed=0, batch_size=13).plans(0, 2)),
        list(EvalOrder(index, Augment(64), batch_size=13).plans()),
    ):
        difference = apart(index, tmp_path, plans)
        assert difference.mean(dim=(1, 2, 3)).max() <= 0.5
        assert difference[:, 1:-1, 1:-1].max() <= 1


def test_mapped_and_plain_reading_give_the_same_pixels(root: Path, index: Index) -> None:
    plans = train_plans(index, Augment(32), steps=1)
    mapped, plain = (batches(DaliLoader, index, root, plans, dont_use_mmap=flag) for flag in (False, True))
    assert torch.equal(mapped[0].images, plain[0].images)


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_stay_as_they_were_while_others_are_made(root: Path, index: Index, kind: type) -> None:
    plans = train_plans(index, Augment(32), steps=6)

    def copies() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in batches(kind, index, root, plans):
            yield batch.images, batch.images.clone()

    kept = list(copies())
    again = batches(kind, index, root, plans)
    assert all(torch.equal(image, copy) for image, copy in kept)
    assert all(torch.equal(image, b.images) for (image, _), b in zip(kept, again, strict=True))


def test_the_kind_of_geometry_follows_the_crop() -> None:
    assert [train_kind(Augment(8, crop=crop)) for crop in ("rrc", "none", "pad")] == [
        "window",
        "window",
        "resize",
    ]
