"""What a student loses by differing from its teacher; sums over the batch, computed in float32 or better."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

AttentionNorm = Literal["max", "l2"]


def distribution_loss_sum(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """T^2 KL(p || q) summed over the batch, p = softmax(teacher / T), q = softmax(student / T); 0-d.

    Hinton et al. 2015, with their T^2 that keeps the gradient's size. At T = 1 its gradient is that of the
    distribution loss of ReActNet (Liu et al., ECCV 2020), -sum p log q, which differs by the entropy of p, a constant.

    Args:
        student: (B, classes) logits.
        teacher: (B, classes) logits, without a gradient.
        temperature: T.
    """
    wide_student, wide_teacher = _wide(student), _wide(teacher)
    log_q = F.log_softmax(wide_student / temperature, dim=1)
    log_p = F.log_softmax(wide_teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p.to(log_q.dtype), reduction="sum", log_target=True)


def attention_map(features: torch.Tensor, norm: AttentionNorm) -> torch.Tensor:
    """Where a feature map (B, C, H, W) is strong: the mean of its squares over the channels, (B, H W), normalised.

    Zagoruyko & Komodakis, ICLR 2017, as used by Martinez et al., ICLR 2020 (Real-to-Binary).

    Args:
        features: any float type.
        norm: max divides each image's map by its largest value, as larq's re-implementation does; l2 by its Euclidean
            norm, which is what the paper is remembered to say (unverified).
    """
    strength = _wide(features).square().mean(dim=1).flatten(1)
    size = strength.amax(dim=1, keepdim=True) if norm == "max" else strength.norm(dim=1, keepdim=True)
    # A map of zeros stays one.
    return strength / size.clamp(min=torch.finfo(strength.dtype).tiny)


def attention_loss_sum(
    student: tuple[torch.Tensor, ...], teacher: tuple[torch.Tensor, ...], *, norm: AttentionNorm
) -> torch.Tensor:
    """The mean over pairs of taps of the mean over pixels of (map - teacher's map)^2, summed over the batch; 0-d.

    Args:
        student, teacher: feature maps (B, C, H, W) whose C may differ, pair by pair.
        norm: see `attention_map`.
    """
    pairs = zip(student, teacher, strict=True)
    losses = [
        (attention_map(mine, norm) - attention_map(theirs, norm)).square().mean(dim=1).sum() for mine, theirs in pairs
    ]
    return torch.stack(losses).mean()


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
