"""Exact evaluation: integer counts over every sample, once, whatever the number of ranks and the batch size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from trainer.data.batch import Batch
from trainer.distributed import collectives
from trainer.losses import correct_counts, cross_entropy_sum
from trainer.pixels import Pixels


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on a whole split.

    Attributes:
        samples: images evaluated, over all ranks.
        correct1, correct5: right answers, first and among the first five.
        loss: mean cross-entropy, without label smoothing.
    """

    samples: int
    correct1: int
    correct5: int
    loss: float

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.correct1 / self.samples

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100 * self.correct5 / self.samples

    def metrics(self) -> dict[str, float]:
        """Under the names of the journal."""
        return {"val/loss": self.loss, "val/top1": self.top1, "val/top5": self.top5}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    pixels: Pixels,
    *,
    samples: int,
    autocast: torch.dtype | None = None,
) -> Evaluation:
    """Evaluate a model over this rank's batches and sum over all ranks.

    Args:
        model: (B, 3, S, S) to (B, classes) logits; evaluated in eval mode, its mode is restored.
        batches: this rank's share of the split; batches may be empty.
        pixels: prepares images on the device.
        samples: how many samples all ranks together must have seen.
        autocast: low precision to compute in, if any.

    Raises:
        AssertionError: another number of samples was seen.
    """
    counts = torch.zeros(3, dtype=torch.int64, device=pixels.device)
    loss = torch.zeros((), dtype=torch.float64, device=pixels.device)
    was_training = model.training
    model.eval()
    for batch in batches:
        if len(batch.labels) == 0:
            continue
        images, labels = pixels(batch)
        with torch.autocast(pixels.device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(images)
        counts[:2] += correct_counts(logits, labels)
        counts[2] += len(labels)
        loss += cross_entropy_sum(logits, labels, smoothing=0.0)
    model.train(was_training)
    collectives.all_reduce_(counts)
    collectives.all_reduce_(loss)
    correct1, correct5, seen = counts.tolist()
    assert seen == samples, f"evaluation saw {seen} samples of {samples}"
    return Evaluation(samples=seen, correct1=correct1, correct5=correct5, loss=loss.item() / seen)
