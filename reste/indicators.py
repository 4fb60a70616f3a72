"""The two sides of ReSTE's equilibrium: how wrong the estimator is, and how unsteady its gradients are.

As the power rises, the surrogate curve approaches sign (the estimating error falls) while the slopes spread
(the gradient instability rises). Both are 0-d tensors on the device of their input, in float32 or better;
nothing is read to the host.

They differ from the official code on purpose: the error is measured with the curve that training uses now
(its present power, with chord and saturation), not with the bare root at the final power.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .curves import widen
from .estimators import Estimator
from .functional import binary_sign
from .layers import binary_layers


@torch.no_grad()
def estimating_error(weight: Tensor, estimator: Estimator) -> Tensor:
    """|| f(W) - sign(W) ||_2 over all entries, with f the estimator's curve at its present power.

    Args:
        weight: latent weight, any shape.
        estimator: the one that binarises it.

    Returns:
        0-d tensor, in the units of the weight.
    """
    wide = widen(weight)
    return torch.linalg.vector_norm(estimator.curve(wide) - binary_sign(wide))


@torch.no_grad()
def gradient_instability(grad: Tensor) -> Tensor:
    """var |dL/dW| over all entries, unbiased; 0 for a single entry.

    Args:
        grad: gradient of a latent weight, any shape; undo a loss scale first.

    Returns:
        0-d tensor, in the units of the gradient squared.
    """
    if grad.numel() < 2:
        return torch.zeros((), dtype=widen(grad).dtype, device=grad.device)
    return widen(grad).abs().var(correction=1)


def collect_indicators(model: nn.Module) -> dict[str, Tensor]:
    """Both indicators for every layer of `model` with a binary weight, and their sums over the layers.

    Call it between the backward pass and the moment the gradients are cleared.

    Args:
        model: the model itself rather than a wrapper, whose prefix would appear in the names.

    Returns:
        0-d tensors under "estimating_error" and "estimating_error/<layer>", and, for layers that have a
        gradient, under "gradient_instability" and "gradient_instability/<layer>". Empty if no layer has a
        binary weight.
    """
    errors: dict[str, Tensor] = {}
    instabilities: dict[str, Tensor] = {}
    for name, layer in binary_layers(model):
        if layer.weight_estimator is None:
            continue
        errors[name] = estimating_error(layer.weight, layer.weight_estimator)
        if layer.weight.grad is not None:
            instabilities[name] = gradient_instability(layer.weight.grad)
    return _with_total("estimating_error", errors) | _with_total("gradient_instability", instabilities)


def _with_total(kind: str, per_layer: dict[str, Tensor]) -> dict[str, Tensor]:
    if not per_layer:
        return {}
    total = torch.stack(list(per_layer.values())).sum()
    return {kind: total} | {f"{kind}/{name}": value for name, value in per_layer.items()}
