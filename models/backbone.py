"""What every backbone promises: timm's contract, written once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.recompute import recompute


class Backbone(nn.Module, ABC):
    """A classifier in two halves: features (B, C, H, W), then a pooled full-precision linear head.

    A family supplies `forward_features` and `pool`, and calls `add_head` last. Its children are registered in
    the order in which they run, because timm's `features_only` runs them one after the other.

    Attributes:
        numerics: "default", or "reference" where sums are to be rounded as the official code rounds them.
        num_features: channels C of `forward_features`.
        head_hidden_size: length of the vector that enters the classifier.
        feature_info: one entry for each tap of `features_only`: `num_chs`, `reduction` (input pixels along
            a side per feature pixel) and `module`.
    """

    def __init__(self, *, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.numerics = "default"
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

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Images (B, in_chans, H, W) to features as of `forward_features`, and the maps of chosen taps with them.

        Args:
            x: images.
            indices: which entries of `feature_info`, the last so many of them, or None for all.
            norm: there is no norm that only the last map passes; without effect.
            stop_early: compute no further than the last chosen tap; only with `intermediates_only`.
            output_fmt: "NCHW".
            intermediates_only: return the maps alone.

        Raises:
            ValueError: another format, a tap that is not there, or to stop early and still return features.
        """
        if output_fmt != "NCHW" or (stop_early and not intermediates_only):
            raise ValueError("available: output_fmt='NCHW', and stop_early together with intermediates_only")
        names = [str(row["module"]) for row in self.feature_info]
        if indices is None or isinstance(indices, int):
            chosen = names[-(indices or len(names)) :]
        else:
            if not all(-len(names) <= index < len(names) for index in indices):
                raise ValueError(f"indices={list(indices)!r}: there are {len(names)} maps, counted from 0")
            chosen = [names[index] for index in indices]
        maps = []
        # The children run one after the other, as `features_only` has them.
        for name, child in self.named_children():
            x = self._run_child(child, x)
            if name in chosen:
                maps.append(x)
            if name == names[-1] or (stop_early and len(maps) == len(chosen)):
                break
        return maps if intermediates_only else (x, maps)

    def _run_child(self, child: nn.Module, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and isinstance(child, nn.Sequential)):
            return child(x)
        for block in child:
            x = recompute(block, x, owner=block)
        return x

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
