"""One loader gives images of several sizes, each as a loader for that size alone would."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_tree import make_tree

from trainer.data.batch import Loader
from trainer.data.dali import DaliLoader
from trainer.data.index import Index, load_index
from trainer.data.order import Augment, Plan, TrainOrder, train_kind
from trainer.data.prepare.folder import prepare_folder
from trainer.data.sizes import ImageSizes
from trainer.data.torchvision import TorchvisionLoader

LOADERS = [DaliLoader, TorchvisionLoader]
SIZES = ImageSizes((0, 1, 2), (64, 96, 32))
STEPS = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_tree(tmp_path_factory.mktemp("photos"), train=25, val=5)
    prepare_folder(root, workers=2)
    return root


@pytest.fixture(scope="module")
def index(root: Path) -> Index:
    return load_index(root, "train")


def load(
    kind: type, index: Index, root: Path, plans: list[Plan], *, largest: int, most: int = 10
) -> list[torch.Tensor]:
    loader: Loader = kind(index, root, image_size=largest, kind=plans[0].geometry.kind, max_batch=most, prefetch=4)
    try:
        # What DALI gives is its own memory, and is let go of with the loader.
        return [batch.images.clone() for batch in loader.load(plans)]
    finally:
        loader.close()


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("crop", ["rrc", "pad"])
def test_a_batch_has_one_size_and_the_pixels_of_a_loader_for_that_size(
    root: Path, index: Index, kind: type, crop: str
) -> None:
    order = TrainOrder(index, Augment(64, crop=crop), seed=7, batch_size=10, image_sizes=SIZES)
    assert order.steps_per_epoch == STEPS
    plans = list(order.plans(0, 3 * STEPS))
    together = load(kind, index, root, plans, largest=order.image_size)
    for epoch, side in enumerate(SIZES.sides):
        here = slice(epoch * STEPS, (epoch + 1) * STEPS)
        # The last batch of an epoch has five images.
        assert [tuple(images.shape) for images in together[here]] == [(n, side, side, 3) for n in (10, 10, 5)]
        alone = load(kind, index, root, plans[here], largest=side)
        for images, expected in zip(together[here], alone, strict=True):
            assert torch.equal(images, expected)


def test_both_loaders_show_the_same_at_every_size(root: Path, index: Index) -> None:
    order = TrainOrder(index, Augment(64), seed=7, batch_size=10, image_sizes=SIZES)
    assert train_kind(order.augment) == "window"
    plans = list(order.plans(0, 3 * STEPS))
    both = [load(kind, index, root, plans, largest=order.image_size) for kind in LOADERS]
    for ours, theirs in zip(*both, strict=True):
        difference = (ours.int() - theirs.int()).abs().float()
        assert difference.max() <= 2
        assert difference.mean() <= 0.1


@pytest.mark.parametrize("kind", LOADERS)
def test_a_plan_of_larger_images_than_promised_is_a_mistake(root: Path, index: Index, kind: type) -> None:
    order = TrainOrder(index, Augment(64), seed=7, batch_size=10, image_sizes=SIZES)
    with pytest.raises(AssertionError, match="larger than image_size"):
        load(kind, index, root, list(order.plans(0, 3 * STEPS)), largest=64)
