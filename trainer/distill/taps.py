"""Feature maps beside the logits: which maps of two networks belong together, and the pass that returns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from trainer.errors import ConfigError


class Tapped(nn.Module):
    """A model whose forward pass also returns feature maps: images to (logits, maps).

    It goes through timm's `forward_intermediates`, in one pass and without hooks, so that it compiles into one graph
    and engines see the maps as outputs like the logits. The model itself stays as it is.

    Args:
        model: of timm's contract.
        indices: which of its `feature_info`, rising.
    """

    def __init__(self, model: nn.Module, indices: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.indices = list(indices)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """(B, C, H, W) to logits (B, classes) and maps (B, channels, H', W')."""
        model: Any = self.model
        last, maps = model.forward_intermediates(images, indices=self.indices, output_fmt="NCHW")
        return model.forward_head(last), tuple(maps)


def common_taps(student: nn.Module, teacher: nn.Module) -> tuple[list[int], list[int]]:
    """The feature maps of both that belong together: for every reduction that both have, the last map of each.

    Returns:
        Two lists of indices into `feature_info`, pair by pair.

    Raises:
        ConfigError: a network offers none, or they have no reduction in common.
    """
    mine, theirs = _last_by_reduction(student, "the model"), _last_by_reduction(teacher, "the teacher")
    common = sorted(mine.keys() & theirs.keys())
    if not common:
        raise ConfigError(
            f"distill.attention: the model's features are {_words(mine)} times smaller than the image, the teacher's "
            f"{_words(theirs)}: name another teacher, or set distill.attention=0"
        )
    return [mine[reduction] for reduction in common], [theirs[reduction] for reduction in common]


def _last_by_reduction(model: nn.Module, who: str) -> dict[int, int]:
    info: Any = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"distill.attention: {who} shows no features: name another one, or set distill.attention=0")
    rows = info if isinstance(info, list) else info.info
    return {int(row["reduction"]): index for index, row in enumerate(rows)}


def _words(taps: dict[int, int]) -> str:
    return ", ".join(map(str, sorted(taps)))
