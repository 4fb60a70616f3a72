"""Sums over steps and ranks, kept on the device and read by the host only when something is logged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from trainer.distributed import collectives

_LOSS, _TOP1, _TOP5, _COUNT, _PARTS = range(5)


@dataclass(frozen=True)
class Reading:
    """A window of training, summed over all ranks: mean loss, accuracies in percent, number of samples.

    `parts` are the means of the loss's terms, by name.
    """

    loss: float
    top1: float
    top5: float
    samples: int
    parts: dict[str, float] = field(default_factory=dict)


class Meters:
    """Loss and counts of the current step and of the window since the last reading.

    The step's sums are added up over the ranks once, before the optimizer moves, so that every rank holds the same
    window and any one of them can save it.

    Args:
        device: where they are kept.
        parts: names of the terms of the loss that are summed up beside it.
    """

    def __init__(self, device: torch.device, parts: Sequence[str] = ()) -> None:
        self._parts = tuple(parts)
        self._step = torch.zeros(_PARTS + len(self._parts), dtype=torch.float64, device=device)
        self._window = torch.zeros_like(self._step)

    def add(
        self, loss_sum: torch.Tensor, correct: torch.Tensor, count: int, parts: Sequence[torch.Tensor] = ()
    ) -> None:
        """Add one micro-batch of this rank: summed loss (0-d), right answers (2,), samples, summed terms (0-d each)."""
        self._step[_LOSS] += loss_sum.detach()
        self._step[_TOP1:_COUNT] += correct
        self._step[_COUNT] += count
        if parts:
            self._step[_PARTS:] += torch.stack([part.detach().double() for part in parts])

    def agree(self) -> torch.Tensor:
        """Sum the step over the ranks; returns its global mean loss (0-d, device).

        The step joins the window, unless its loss is not finite: one bad step would be all that the window tells of.
        """
        collectives.all_reduce_(self._step)
        self._window += torch.where(self._step[_LOSS].isfinite(), self._step, 0.0)
        loss = self._step[_LOSS] / self._step[_COUNT]
        self._step.zero_()
        return loss

    def read(self) -> Reading:
        """The window on the host; starts a new one."""
        loss, top1, top5, count, *terms = self._window.tolist()
        self._window.zero_()
        if count == 0:
            return Reading(math.nan, math.nan, math.nan, 0)
        parts = {name: term / count for name, term in zip(self._parts, terms, strict=True)}
        return Reading(loss / count, 100 * top1 / count, 100 * top5 / count, int(count), parts)

    def state(self) -> list[float]:
        """The open window, exact in JSON."""
        return self._window.tolist()

    def load(self, state: list[float]) -> None:
        """Continue a saved window."""
        self._window.copy_(torch.tensor(state, dtype=torch.float64))
