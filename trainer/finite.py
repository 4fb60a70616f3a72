"""The agreement that loss and gradient are finite, made before the optimizer moves, without waiting for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class BadStep:
    """A step that moved no weight, because its loss or its gradient was not finite.

    Attributes:
        step: completed steps before it.
        loss: mean over the global batch.
        gradient_norm: over all parameters.
    """

    step: int
    loss: float
    gradient_norm: float

    @property
    def number(self) -> int:
        """As the journal counts, from 1."""
        return self.step + 1

    @property
    def what(self) -> str:
        """What was not finite."""
        return "the loss" if not math.isfinite(self.loss) else "the gradient"


class FiniteGuard:
    """Judges every step on the device, and keeps what it found until the host asks.

    Both inputs are equal on all ranks, so every rank comes to the same verdict.

    Args:
        model: its buffers (batch statistics) are given back what a bad step's forward pass has done to them.
        device: of the run.
        lasting: after a bad step, block every later one too, until `forget`. Otherwise each is judged by itself.
        room: how many bad steps can be kept between two calls of `take`.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, lasting: bool, room: int) -> None:
        self._buffers = [] if lasting else [buffer for buffer in model.buffers() if buffer.numel()]
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._lasting = lasting
        self._rows = torch.arange(room, device=device)
        # Of each bad step its number, loss and gradient norm; float64 holds every step below 2^53.
        self._found = torch.zeros((room, 3), dtype=torch.float64, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def begin(self) -> None:
        """A step begins: remember the buffers as they are."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def check(self, loss: torch.Tensor, gradient_norm: torch.Tensor, step: int) -> torch.Tensor:
        """Whether the update of `step` must not happen: a 0-d tensor, 1 or 0, on the device."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(gradient_norm))
        if self._lasting:
            first = bad & (self._count == 0)
            blocked = bad | (self._count > 0)
        else:
            first = blocked = bad
        row = torch.stack([torch.full_like(self._found[0, 0], step), loss.double(), gradient_norm.double()])
        self._found = torch.where((first & (self._rows == self._count))[:, None], row, self._found)
        self._count += first
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(torch.where(blocked, kept, buffer))
        return blocked.float()

    def take(self) -> list[BadStep]:
        """Read on the host the bad steps found since the last call; they stay blocked if they are lasting."""
        count = int(self._count)
        if not count:
            return []
        rows = self._found[:count].tolist()
        if not self._lasting:
            self._count.zero_()
        return [BadStep(int(step), loss, norm) for step, loss, norm in rows]

    def forget(self) -> None:
        """What was found has been dealt with."""
        self._count.zero_()
