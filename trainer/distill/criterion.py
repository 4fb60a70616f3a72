"""The loss of a student: its labels, its teacher's answers, its teacher's attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trainer.config import Config
from trainer.config_schema import DistillConfig
from trainer.criterion import Loss
from trainer.distill.losses import attention_loss_sum, distribution_loss_sum
from trainer.distill.taps import Tapped, common_taps
from trainer.distill.teacher import Teacher
from trainer.distributed.forward import Forward
from trainer.losses import cross_entropy_sum


class DistillationLoss:
    """labels * CE(labels) + weight * T^2 KL(teacher || student) + attention * (difference of attention maps).

    The teacher belongs to it alone: it is in no checkpoint, no engine knows of it, and no gradient reaches it.

    Args:
        teacher: (B, C, H, W) to logits, or to (logits, maps) with attention; in the run's precision.
        options: the weights of the terms.
        smoothing: label smoothing.
    """

    def __init__(self, teacher: Forward, options: DistillConfig, *, smoothing: float) -> None:
        self._teacher = teacher
        self._options = options
        self._smoothing = smoothing
        attended = ("attention_loss",) if options.attention else ()
        self.parts: tuple[str, ...] = ("label_loss", "distill_loss", *attended)

    def __call__(self, outputs: Any, images: torch.Tensor, labels: torch.Tensor, *, whole: bool) -> Loss:
        """See `Criterion`; outputs are logits, or (logits, maps) with attention."""
        options = self._options
        with torch.no_grad():
            told: Any = self._teacher(images, whole)
        logits, maps = outputs if options.attention else (outputs, ())
        answers, their_maps = told if options.attention else (told, ())
        # A term of weight 0 is logged, and not part of the sum: 0 times an overflow would be NaN.
        by_labels = cross_entropy_sum(logits if options.labels else logits.detach(), labels, smoothing=self._smoothing)
        by_answers = distribution_loss_sum(
            logits if options.weight else logits.detach(), answers, temperature=options.temperature
        )
        terms = [(options.labels, by_labels), (options.weight, by_answers)]
        if options.attention:
            terms.append((options.attention, attention_loss_sum(maps, their_maps, norm=options.attention_norm)))
        total = torch.stack([weight * term for weight, term in terms if weight]).sum()
        return Loss(total, logits, tuple(term.detach() for _, term in terms))


def pair(
    config: Config, student: nn.Module, teacher: Teacher, device: torch.device
) -> tuple[nn.Module, DistillationLoss]:
    """What an engine is to train, and its loss.

    Args:
        config: of the run.
        student: the network of the run.
        teacher: of `load_teacher`.
        device: of both.

    Returns:
        The student, with its maps beside its logits where attention is matched, and the loss of what it returns.

    Raises:
        ConfigError: attention is to be matched and the networks show no maps that belong together.
    """
    taught = teacher.network
    if config.distill.attention:
        mine, theirs = common_taps(student, taught)
        student, taught = Tapped(student, mine), Tapped(taught, theirs)
    whole = nn.Sequential(teacher.images, taught).eval()
    forward = Forward(whole, precision=config.train.precision, compile=config.train.compile, device=device)
    return student, DistillationLoss(forward.eval(), config.distill, smoothing=config.train.label_smoothing)
