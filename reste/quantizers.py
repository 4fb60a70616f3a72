"""What is done to a weight beside taking its sign."""

from __future__ import annotations

from torch import Tensor


def weight_scale(weight: Tensor) -> Tensor:
    """s = mean |W| over all dimensions: one number per layer (ReSTE, Wu et al., ICCV 2023).

    Not detached: the gradient sign(W)/n flows into the latent weight as well.

    Args:
        weight: latent weight, any shape.

    Returns:
        0-d tensor in the dtype of `weight`.
    """
    return weight.abs().mean()
