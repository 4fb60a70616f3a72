"""The training loss and the counts of right answers, as device tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy_sum(logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float) -> torch.Tensor:
    """Sum of cross-entropies over the batch, at least in float32; zero, with a gradient, for an empty batch.

    Args:
        logits: (B, classes), any float type.
        labels: (B,) int64.
        smoothing: label smoothing (Szegedy et al. 2016), share of the target spread over all classes.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, labels, reduction="sum", label_smoothing=smoothing)


def correct_counts(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many labels are the first and among the first five, (2,) int64.

    Ties are broken as `torch.topk` breaks them; a NaN row counts as wrong. With fewer than five classes the second
    number uses all of them.
    """
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = (top == labels[:, None]) & ~logits.isnan().any(dim=1, keepdim=True)
    return torch.stack([right[:, 0].sum(), right.sum()])
