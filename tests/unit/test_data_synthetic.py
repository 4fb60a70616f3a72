"""Images without files."""

from __future__ import annotations

import numpy as np
import torch

from trainer.data.order import Augment, EvalOrder, TrainOrder
from trainer.data.synthetic import SyntheticLoader, synthetic_index


def test_pixels_depend_on_the_id_alone() -> None:
    index, loader = synthetic_index(20, classes=3, size=64), SyntheticLoader(16)
    seen: dict[int, torch.Tensor] = {}
    for batch_size in (7, 20):
        order = TrainOrder(index, Augment(16), seed=batch_size, batch_size=batch_size)
        for batch in loader.load(order.plans(0, order.steps_per_epoch)):
            assert batch.images.dtype == torch.uint8
            assert batch.images.shape == (len(batch.ids), 16, 16, 3)
            for sample, image in zip(batch.ids.tolist(), batch.images, strict=True):
                assert torch.equal(seen.setdefault(sample, image), image)
    assert len({image.numpy().tobytes() for image in seen.values()}) == 20


def test_labels_ids_and_flips_are_those_of_the_plan() -> None:
    index = synthetic_index(9, classes=4, size=32, split="val")
    assert index.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert index.classes == ["0", "1", "2", "3"]
    order = TrainOrder(index, Augment(8, crop="pad"), seed=0, batch_size=9)
    (batch,) = SyntheticLoader(8).load(order.plans(0, 1))
    np.testing.assert_array_equal(batch.ids.numpy(), batch.plan.ids)
    np.testing.assert_array_equal(batch.labels.numpy(), index.labels[batch.plan.ids])
    np.testing.assert_array_equal(batch.flips.numpy(), batch.plan.flips)
    assert (batch.labels.dtype, batch.ids.dtype, batch.flips.dtype) == (torch.int64, torch.int64, torch.bool)


def test_empty_plans_give_empty_batches() -> None:
    order = EvalOrder(synthetic_index(1, classes=1, size=8), Augment(8), batch_size=2, rank=0, world=2)
    (batch,) = SyntheticLoader(8).load(order.plans())
    assert batch.images.shape == (0, 8, 8, 3)


def test_pixels_made_on_a_device_are_the_same() -> None:
    order = EvalOrder(synthetic_index(5, classes=1, size=8), Augment(8), batch_size=5)
    loaders = (SyntheticLoader(8), SyntheticLoader(8, device=torch.device("cpu")))
    (here,), (there,) = (list(loader.load(order.plans())) for loader in loaders)
    assert torch.equal(here.images, there.images)


def test_noise_uses_the_whole_range() -> None:
    order = EvalOrder(synthetic_index(4, classes=1, size=64), Augment(64), batch_size=4)
    (batch,) = SyntheticLoader(64).load(order.plans())
    assert abs(batch.images.float().mean().item() - 127.5) < 2
    assert (batch.images.min().item(), batch.images.max().item()) == (0, 255)
