"""What a student loses: against the formulas written again, with gradients by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from trainer.config_schema import DistillConfig
from trainer.criterion import LabelLoss
from trainer.distill.criterion import DistillationLoss
from trainer.distill.losses import attention_loss_sum, attention_map, distribution_loss_sum
from trainer.losses import cross_entropy_sum


def logits(seed: int, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(5, 7, generator=draw, dtype=torch.float64)).to(dtype)


def maps(seed: int, channels: int, *, side: int = 3) -> torch.Tensor:
    return torch.randn(4, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_distance_of_answers_is_the_divergence_summed_in_plain_loops(temperature: float) -> None:
    student, teacher = logits(1), logits(2)
    expected = 0.0
    for row, told in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(value / temperature) for value in told]
        q = [math.exp(value / temperature) for value in row]
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        expected += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert distribution_loss_sum(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_its_gradient_is_temperature_times_the_difference_of_the_softmaxes(temperature: float) -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    distribution_loss_sum(student, teacher, temperature=temperature).backward()
    by_hand = temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1))
    torch.testing.assert_close(student.grad, by_hand.detach(), rtol=1e-12, atol=1e-12)


def test_at_temperature_one_the_gradient_is_that_of_the_distribution_loss_of_reactnet() -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    (ours,) = torch.autograd.grad(distribution_loss_sum(student, teacher, temperature=1.0), student)
    cross_entropy = -(teacher.softmax(1) * student.log_softmax(1)).sum()
    (theirs,) = torch.autograd.grad(cross_entropy, student)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_are_compared_in_float32(dtype: torch.dtype) -> None:
    student, teacher = logits(1, dtype=dtype), logits(2, dtype=dtype)
    found = distribution_loss_sum(student, teacher, temperature=2.0)
    assert found.dtype == torch.float32
    exact = distribution_loss_sum(student.double(), teacher.double(), temperature=2.0)
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("norm", ["max", "l2"])
def test_an_attention_map_is_the_mean_square_over_channels_at_every_pixel(norm: str) -> None:
    features = maps(3, 6)
    found = attention_map(features, norm)  # type: ignore[arg-type]
    for image in range(4):
        plain = [sum(features[image, c, y, x].item() ** 2 for c in range(6)) / 6 for y in range(3) for x in range(3)]
        size = max(plain) if norm == "max" else math.sqrt(sum(value**2 for value in plain))
        assert found[image].tolist() == pytest.approx([value / size for value in plain], rel=1e-12)


@pytest.mark.parametrize("norm", ["max", "l2"])
def test_the_attention_loss_is_the_mean_over_maps_and_pixels_summed_over_images(norm: str) -> None:
    mine = (maps(1, 4), maps(2, 8, side=2))
    theirs = (maps(3, 6), maps(4, 5, side=2))
    expected = 0.0
    for student, teacher in zip(mine, theirs, strict=True):
        difference = attention_map(student, norm) - attention_map(teacher, norm)  # type: ignore[arg-type]
        expected += difference.square().mean().item() * len(student) / 2
    found = attention_loss_sum(mine, theirs, norm=norm)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(expected, rel=1e-12)
    inputs = tuple(tensor.clone().requires_grad_() for tensor in mine)
    assert torch.autograd.gradcheck(lambda *x: attention_loss_sum(x, theirs, norm=norm), inputs)  # type: ignore[arg-type]


def test_equal_maps_cost_nothing_and_empty_ones_have_a_finite_gradient() -> None:
    same = maps(1, 4)
    assert attention_loss_sum((same,), (2 * same,), norm="max").item() == pytest.approx(0, abs=1e-20)
    for norm in ("max", "l2"):
        empty = torch.zeros(2, 3, 2, 2, requires_grad=True)
        attention_loss_sum((empty,), (maps(1, 3, side=2)[:2].float(),), norm=norm).backward()  # type: ignore[arg-type]
        assert empty.grad is not None
        assert empty.grad.isfinite().all()


def teacher_of(told: object) -> torch.nn.Module:
    """A network that gives the same answer to everything."""

    class Same(torch.nn.Module):
        def forward(self, images: torch.Tensor, whole: bool) -> object:
            return told

    return Same()


@pytest.mark.parametrize("attention", [0.0, 30.0])
def test_the_terms_are_weighed_and_told_apart_from_their_weights(attention: float) -> None:
    options = DistillConfig(weight=0.8, temperature=2.0, labels=0.5, attention=attention)
    labels = torch.tensor([0, 1, 2, 3])
    student, answers, mine, theirs = logits(1)[:4], logits(2)[:4], (maps(1, 4),), (maps(2, 6),)
    criterion = DistillationLoss(teacher_of((answers, theirs) if attention else answers), options, smoothing=0.1)  # type: ignore[arg-type]
    found = criterion((student, mine) if attention else student, torch.zeros(4), labels, whole=True)
    terms = [
        F.cross_entropy(student, labels, reduction="sum", label_smoothing=0.1),
        4.0 * F.kl_div((student / 2).log_softmax(1), (answers / 2).softmax(1), reduction="sum"),
        *([attention_loss_sum(mine, theirs, norm="max")] if attention else []),
    ]
    torch.testing.assert_close(torch.stack(found.parts), torch.stack(terms))
    weights = [0.5, 0.8, attention]
    expected = sum(weight * term for weight, term in zip(weights, terms, strict=False))
    torch.testing.assert_close(found.total, expected)
    assert found.logits is student
    assert criterion.parts == ("label_loss", "distill_loss", "attention_loss")[: len(terms)]


def test_a_term_of_weight_zero_reaches_neither_the_sum_nor_the_gradient() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    student = logits(1).requires_grad_()
    alone = DistillationLoss(teacher_of(logits(2)), DistillConfig(labels=0.0), smoothing=0.0)  # type: ignore[arg-type]
    found = alone(student, torch.zeros(5), labels, whole=True)
    (gradient,) = torch.autograd.grad(found.total, student)
    torch.testing.assert_close(gradient, (student.softmax(1) - logits(2).softmax(1)).detach())
    assert found.parts[0].item() == pytest.approx(F.cross_entropy(student, labels, reduction="sum").item())


def test_an_empty_batch_loses_nothing_and_has_a_gradient() -> None:
    student = logits(1)[:0].requires_grad_()
    criterion = DistillationLoss(teacher_of(logits(2)[:0]), DistillConfig(), smoothing=0.0)  # type: ignore[arg-type]
    found = criterion(student, torch.zeros(0), torch.zeros(0, dtype=torch.int64), whole=False)
    found.total.backward()
    assert found.total.item() == 0
    assert student.grad is not None


def test_without_a_teacher_the_loss_is_that_of_the_labels_alone() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    found = LabelLoss(0.1)(logits(1), torch.zeros(5), labels, whole=True)
    assert torch.equal(found.total, cross_entropy_sum(logits(1), labels, smoothing=0.1))
    assert found.parts == ()
