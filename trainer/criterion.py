"""What is minimised: from a micro-batch's outputs and labels to the sum that an engine goes back through."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from trainer.losses import cross_entropy_sum


class Loss(NamedTuple):
    """What a criterion makes of a micro-batch; sums over its images, never means, so that uneven parts add up.

    Attributes:
        total: what is minimised, 0-d, at least float32.
        logits: (B, classes), for counting right answers.
        parts: the terms of it, unweighted and 0-d, in the order of `Criterion.parts`.
    """

    total: torch.Tensor
    logits: torch.Tensor
    parts: tuple[torch.Tensor, ...] = ()


class Criterion(Protocol):
    """What the loop asks for the loss."""

    parts: tuple[str, ...]
    """Names of the terms that are logged beside their sum."""

    def __call__(self, outputs: Any, images: torch.Tensor, labels: torch.Tensor, *, whole: bool) -> Loss:
        """The loss of one micro-batch.

        Args:
            outputs: what the engine's forward pass gave.
            images: (B, 3, S, S), as the network saw them.
            labels: (B,) int64.
            whole: as in `Engine.forward`.
        """


class LabelLoss:
    """The cross-entropy with the labels, and nothing else; outputs are logits.

    Args:
        smoothing: label smoothing.
    """

    parts: tuple[str, ...] = ()

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing

    def __call__(self, outputs: torch.Tensor, images: torch.Tensor, labels: torch.Tensor, *, whole: bool) -> Loss:
        """See `Criterion`."""
        return Loss(cross_entropy_sum(outputs, labels, smoothing=self._smoothing), outputs)
