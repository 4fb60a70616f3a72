"""The contract between loaders and the train step: uint8 pixels, nothing random left to do but the flip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from trainer.data.order import Plan


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch of one rank; B may be 0.

    Attributes:
        images: uint8 (B, S, S, 3), RGB, not flipped, not normalised; on the CPU, or on the GPU that decoded
            them.
        flips: bool (B,), on the CPU: mirror these left to right.
        labels: int64 (B,), on the CPU.
        ids: int64 (B,) sample ids, on the CPU.
        plan: the plan this batch was made from.
    """

    images: torch.Tensor
    flips: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    plan: Plan


class Loader(Protocol):
    """Turns plans into batches, in order, one batch for every plan."""

    def load(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        """Batches of `plans` in their order; an abandoned iterator holds nothing back.

        Raises:
            DataError: a file cannot be read or decoded; names file, sample id and rank.
        """
        ...

    def close(self) -> None:
        """Stop threads and free memory; may be called twice."""
        ...


def make_batch(plan: Plan, images: torch.Tensor) -> Batch:
    """Put pixels beside what the plan already knows."""
    return Batch(
        images=images,
        flips=torch.from_numpy(plan.flips.copy()),
        labels=torch.from_numpy(plan.labels.copy()),
        ids=torch.from_numpy(plan.ids.copy()),
        plan=plan,
    )


def empty_batch(plan: Plan) -> Batch:
    """The batch of a rank whose slice of a small global batch is empty."""
    size = plan.geometry.size
    return make_batch(plan, torch.empty((0, size, size, 3), dtype=torch.uint8))
