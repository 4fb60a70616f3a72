"""What is published for the networks trained here: the one table that reports and model cards compare with.

Top-1 and top-5 are percent on the validation split, from the paper of each network and from the page of its official
code (the files in `models/` name both). The recipes below `configs/` repeat these numbers in their first lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIZES = {"ImageNet-1k": (1_281_167, 50_000, 1000), "CIFAR-10": (50_000, 10_000, 10)}
"""Data set -> training images, validation images, classes: a run whose `data.expect` says so was trained on it."""


@dataclass(frozen=True)
class Published:
    """One published result.

    Attributes:
        data: a key of `SIZES`.
        model: the registered name here of the network.
        weight_bits, activation_bits: 1 or 32.
        epochs, batch_size: of the published training; of its last stage, if it has several.
        top1, top5: percent; `top5` is None where none is given.
        source: "paper", "code" for the official code's page, or "larq" for that of larq's (github.com/larq/zoo).
        stages: trainings that follow each other, each from the one before.
    """

    data: str
    model: str
    weight_bits: int
    activation_bits: int
    epochs: int
    batch_size: int
    top1: float
    top5: float | None
    source: str
    stages: int = 1

    @property
    def whose(self) -> str:
        """The source in words."""
        return {"paper": "the paper", "code": "the official code's page", "larq": "larq's page"}[self.source]

    @property
    def schedule(self) -> str:
        """How long was trained, in words."""
        last = f", the last of {self.stages} stages" if self.stages > 1 else ""
        return f"{self.epochs} epochs of {self.batch_size}{last}"


PUBLISHED = (
    Published("ImageNet-1k", "resnet18_1w1a", 1, 1, 250, 750, 60.88, 82.59, "paper"),
    Published("ImageNet-1k", "resnet18_1w1a", 1, 1, 200, 750, 60.43, 82.48, "code"),
    Published("ImageNet-1k", "resnet18_1w1a", 1, 1, 200, 512, 60.62, 82.52, "code"),
    Published("ImageNet-1k", "resnet18_1w1a", 1, 1, 150, 512, 60.01, 82.14, "code"),
    Published("ImageNet-1k", "resnet18_1w1a", 1, 32, 250, 750, 67.40, 87.20, "paper"),
    Published("ImageNet-1k", "resnet34_1w1a", 1, 1, 250, 750, 65.05, 85.78, "paper"),
    Published("ImageNet-1k", "resnet34_1w1a", 1, 32, 250, 750, 70.74, 89.50, "paper"),
    Published("ImageNet-1k", "bireal18_1w1a", 1, 1, 20, 128, 56.40, 79.50, "paper", 4),
    Published("ImageNet-1k", "bireal34_1w1a", 1, 1, 40, 1024, 62.20, 83.90, "paper", 4),
    Published("ImageNet-1k", "reactnet18_1w1a", 1, 1, 128, 512, 65.90, None, "code", 2),
    Published("ImageNet-1k", "reactnet_a_1w1a", 1, 1, 128, 256, 69.40, None, "paper", 2),
    Published("ImageNet-1k", "real_to_binary18_1w1a", 1, 1, 100, 256, 65.01, 85.72, "larq", 4),
    Published("CIFAR-10", "resnet20_1w1a", 1, 1, 1000, 256, 86.75, None, "paper"),
    Published("CIFAR-10", "resnet20_1w1a", 1, 32, 1000, 256, 91.32, None, "paper"),
    Published("CIFAR-10", "resnet20_bireal_1w1a", 1, 1, 1000, 256, 87.92, None, "paper"),
    Published("CIFAR-10", "resnet18_cifar_1w1a", 1, 1, 2000, 96, 92.63, None, "paper"),
    Published("CIFAR-10", "vgg_small_1w1a", 1, 1, 1000, 256, 92.55, None, "paper"),
)
"""Every published row, the paper's own first for each network."""


def data_set(config: Mapping[str, Any]) -> str | None:
    """The name of the data set that a run was trained on, if it is one with published results.

    Args:
        config: dotted keys, as `trainer.config.flatten` makes them.
    """
    found = tuple(config.get(f"data.expect.{what}") for what in ("train", "val", "classes"))
    return next((name for name, sizes in SIZES.items() if sizes == found), None)


def published_for(config: Mapping[str, Any]) -> list[Published]:
    """All published rows of a run's network at its bits on its data, whatever the schedule; none for other data.

    Args:
        config: dotted keys, as `trainer.config.flatten` makes them.
    """
    network = tuple(config.get(f"model.{key}") for key in ("name", "weight_bits", "activation_bits"))
    data = data_set(config)
    return [
        row for row in PUBLISHED if row.data == data and (row.model, row.weight_bits, row.activation_bits) == network
    ]


def same_schedule(row: Published, config: Mapping[str, Any]) -> bool:
    """Whether a run trained for as many epochs of as many images as a published row of one stage."""
    trained = (config.get("train.epochs"), config.get("train.batch_size"))
    return row.stages == 1 and (row.epochs, row.batch_size) == trained
