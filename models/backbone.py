"""What every backbone promises: timm's contract, written once."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """A classifier in two halves: features (B, C, H, W), then a pooled full-precision linear head.

    A family supplies `forward_features` and `pool`, and calls `add_head` last. Its children are registered in
    the order in which they run, because timm's `features_only` runs them one after the other.

    Attributes:
        num_features: channels C of `forward_features`.
        head_hidden_size: length of the vector that enters the classifier.
        feature_info: one entry for each tap of `features_only`: `num_chs`, `reduction` (input pixels along
            a side per feature pixel) and `module`.
    """

    def __init__(self, *, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, int | str]] = []

    def add_head(self, name: str, *, num_features: int, head_hidden_size: int) -> None:
        """Append the classifier under the child name that official checkpoints use."""
        self.num_features = num_features
        self.head_hidden_size = head_hidden_size
        self.head_name = name
        self.reset_classifier(self.num_classes)

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to features (B, num_features, H', W')."""

    @abstractmethod
    def pool(self, x: Tensor) -> Tensor:
        """Features (B, num_features, H', W') to vectors (B, head_hidden_size)."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits (B, num_classes), or to what enters the classifier if `pre_logits`."""
        x = self.pool(x)
        if self.drop_rate > 0:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes); B may be 0."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity if there are no classes."""
        return getattr(self, self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leaves the pooled vector as the output.

        Raises:
            ValueError: `global_pool` asks for another pooling than the head was built for.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool={global_pool!r} is not available here: leave it out or pass 'avg'")
        self.num_classes = num_classes
        head: nn.Module = nn.Identity()
        if num_classes > 0:
            like = next(self.parameters())
            head = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
        setattr(self, self.head_name, head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: compute each block again in the backward pass instead of keeping it."""
        self.grad_checkpointing = enable
