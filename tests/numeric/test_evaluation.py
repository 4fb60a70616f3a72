"""Exact evaluation against counts made one image at a time."""

from __future__ import annotations

import pytest
import timm
import torch

import models
from trainer.data.order import Augment, EvalOrder
from trainer.data.synthetic import SyntheticLoader, synthetic_index
from trainer.evaluation import Evaluation, evaluate
from trainer.losses import correct_counts, cross_entropy_sum
from trainer.pixels import Pixels

SAMPLES, SIZE = 53, 32


def network(name: str = "resnet20_1w1a") -> torch.nn.Module:
    assert name in models.MODELS
    torch.manual_seed(0)
    return timm.create_model(name, estimator="reste", num_classes=10).to(memory_format=torch.channels_last)


def preparation() -> Pixels:
    return Pixels(torch.device("cpu"), precision="fp32", channels_last=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def score(model: torch.nn.Module, *, batch_size: int, world: int = 1) -> Evaluation:
    """Evaluate rank after rank in this one process and add up, as an all-reduce would."""
    index = synthetic_index(SAMPLES, classes=10, size=SIZE, split="val")
    found = []
    for rank in range(world):
        order = EvalOrder(index, Augment(SIZE, crop="none"), batch_size=batch_size, rank=rank, world=world)
        share = sum(len(plan.ids) for plan in order.plans())
        if share:
            found.append(evaluate(model, SyntheticLoader(SIZE).load(order.plans()), preparation(), samples=share))
    samples = sum(e.samples for e in found)
    return Evaluation(
        samples=samples,
        correct1=sum(e.correct1 for e in found),
        correct5=sum(e.correct5 for e in found),
        loss=sum(e.loss * e.samples for e in found) / samples,
    )


def test_pixels_are_flipped_and_normalised_as_written_out() -> None:
    index = synthetic_index(4, classes=2, size=8)
    order = EvalOrder(index, Augment(8, crop="none"), batch_size=4)
    batch = next(SyntheticLoader(8).load(order.plans()))
    batch.flips[1] = True
    images, _ = preparation()(batch)
    assert images.is_contiguous(memory_format=torch.channels_last)
    for row in range(4):
        pixels = batch.images[row].double()
        if row == 1:
            pixels = pixels[:, torch.arange(7, -1, -1)]
        for channel, (mean, std) in enumerate(((0.5, 0.2), (0.4, 0.3), (0.3, 0.4))):
            expected = (pixels[:, :, channel] / 255 - mean) / std
            torch.testing.assert_close(images[row, channel].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet20_1w1a", "vgg_small_1w1a"])
def test_counts_do_not_depend_on_batch_size_ranks_or_threads(name: str) -> None:
    model = network(name)
    threads = torch.get_num_threads()
    reference = score(model, batch_size=16)
    assert reference.samples == SAMPLES
    try:
        for batch_size, world, count in ((1, 1, 1), (7, 1, 2), (53, 1, 2), (50, 2, 1), (16, 3, 1), (9, 4, 2)):
            torch.set_num_threads(count)
            found = score(model, batch_size=batch_size, world=world)
            assert (found.correct1, found.correct5, found.samples) == (
                reference.correct1,
                reference.correct5,
                reference.samples,
            )
            assert found.loss == pytest.approx(reference.loss, rel=1e-12)
    finally:
        torch.set_num_threads(threads)


def test_counts_are_those_of_a_loop_over_single_images() -> None:
    model = network().eval()
    index = synthetic_index(SAMPLES, classes=10, size=SIZE, split="val")
    order = EvalOrder(index, Augment(SIZE, crop="none"), batch_size=8)
    right1 = right5 = 0
    with torch.no_grad():
        for batch in SyntheticLoader(SIZE).load(order.plans()):
            images, labels = preparation()(batch)
            for image, label in zip(images, labels, strict=True):
                scores = model(image[None])[0]
                rank = int((scores > scores[label]).sum())
                right1 += rank == 0
                right5 += rank < 5
    found = score(model, batch_size=20)
    # One image at a time rounds differently: a flipped sign may cost an answer or win one.
    assert abs(found.correct1 - right1) <= 1
    assert abs(found.correct5 - right5) <= 1


def test_the_mode_and_the_threads_are_as_before() -> None:
    model, threads = network().train(), torch.get_num_threads()
    score(model, batch_size=20)
    assert model.training
    assert torch.get_num_threads() == threads


def test_a_missing_sample_is_noticed() -> None:
    index = synthetic_index(20, classes=10, size=SIZE, split="val")
    order = EvalOrder(index, Augment(SIZE, crop="none"), batch_size=8)
    with pytest.raises(AssertionError, match="saw 20 samples of 21"):
        evaluate(network(), SyntheticLoader(SIZE).load(order.plans()), preparation(), samples=21)


def test_right_answers_by_hand() -> None:
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 6], [0, 9, 8, 7, 6, 5, 4], [float("nan")] * 7])
    assert correct_counts(logits, torch.tensor([0, 6, 0])).tolist() == [1, 1]
    assert correct_counts(logits, torch.tensor([6, 5, 0])).tolist() == [0, 2]
    assert correct_counts(torch.eye(3), torch.tensor([0, 1, 0])).tolist() == [2, 3]


def test_loss_is_the_smoothed_cross_entropy_written_out() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    target = torch.full((5, 4), 0.1 / 4, dtype=torch.float64)
    target[torch.arange(5), labels] += 0.9
    expected = -(target * log_p).sum()
    torch.testing.assert_close(cross_entropy_sum(logits, labels, smoothing=0.1), expected)


def test_the_loss_of_an_empty_batch_is_zero_with_a_gradient() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = cross_entropy_sum(logits, torch.zeros(0, dtype=torch.int64), smoothing=0.0)
    loss.backward()
    assert loss.item() == 0.0
