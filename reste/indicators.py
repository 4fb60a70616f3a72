"""The two sides of ReSTE's equilibrium: how wrong the estimator is, and how unsteady its gradients are.

As the power rises, the surrogate curve approaches sign (the estimating error falls) while the slopes spread
(the gradient instability rises). Everything here is a 0-d tensor on the device of its input, in float32 or
better; nothing is read to the host.

Where a layer has a quantiser q, weights and inputs are looked at behind it, as in eval mode: q(W), q(x).

Each error is measured with two curves. The published one is the bare root at the last power, `o_end`: it does
not move with the schedule, so that runs and papers can be compared. The current one is the curve whose slope
the backward pass uses now, with its present power, chord and saturation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .curves import root_curve, widen
from .estimators import Estimator
from .layers import BinaryLayer, binary_layers, quantized_weight


@torch.no_grad()
def estimating_error(weight: Tensor, estimator: Estimator, o_end: float | None = None) -> Tensor:
    """|| f(W) - sign(W) ||_2 over all entries.

    Args:
        weight: latent weight, any shape.
        estimator: the one that binarises it; its own sign is taken, also at zero.
        o_end: None takes for f the estimator's curve as it is now. A number >= 1 takes the published curve,
            sign(W) |W|^(1/o_end), or the estimator's curve if it has no power.

    Returns:
        0-d tensor, in the units of the weight.

    Raises:
        ValueError: `o_end` is below 1.
    """
    return torch.linalg.vector_norm(_distance(weight, estimator, o_end))


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


def collect_indicators(model: nn.Module, o_end: float = 3.0) -> dict[str, Tensor]:
    """Both indicators for every layer of `model` with a binary weight, and their sums over the layers.

    The sums are the official definitions: of L2 norms, and of unbiased variances. Call it between the backward
    pass and the moment the gradients are cleared.

    Args:
        model: the model itself rather than a wrapper, whose prefix would appear in the names.
        o_end: the power of the published curve; see `estimating_error`.

    Returns:
        0-d tensors under "estimating_error" (published curve), "estimating_error_current" and, for layers that
        have a gradient, "gradient_instability", each alone and as ".../<layer>". Empty if no layer has a binary
        weight.
    """
    published: dict[str, Tensor] = {}
    current: dict[str, Tensor] = {}
    instabilities: dict[str, Tensor] = {}
    for name, layer in binary_layers(model):
        if layer.weight_estimator is None:
            continue
        weight = evaluated_weight(layer)
        published[name] = estimating_error(weight, layer.weight_estimator, o_end)
        current[name] = estimating_error(weight, layer.weight_estimator)
        if layer.weight.grad is not None:
            instabilities[name] = gradient_instability(layer.weight.grad)
    return (
        _with_total("estimating_error", published)
        | _with_total("estimating_error_current", current)
        | _with_total("gradient_instability", instabilities)
    )


@torch.no_grad()
def evaluated_weight(layer: BinaryLayer) -> Tensor:
    """q(W) of a layer as in eval mode, without noise, in the weight's shape; W without a quantiser."""
    with evaluating(layer):
        return quantized_weight(layer)


@torch.no_grad()
def activation_sums(model: nn.Module, forward: Callable[[], object], o_end: float) -> dict[str, Tensor]:
    """What `activation_errors` is made of, for every layer of `model` with a binary input.

    The model is put into eval mode for the call: running statistics are used and none moves, nothing is drawn
    at random. Its hooks and modes are afterwards as they were.

    Args:
        model: the model itself.
        forward: runs it once, or not at all where there is no image.
        o_end: the power of the published curve; see `estimating_error`.

    Returns:
        Under each layer's name a float64 tensor (3,): the sums of (f(a) - sign(a))^2 over the entries a of its
        input with the published and with the current curve, and the number of entries. Sums of several calls,
        or of several ranks, may be added.
    """
    layers = {name: layer for name, layer in binary_layers(model) if layer.activation_estimator is not None}
    sums = {name: torch.zeros(3, dtype=torch.float64, device=layer.weight.device) for name, layer in layers.items()}
    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(partial(_add, sums[name], o_end)))
        with evaluating(model):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return sums


def activation_errors(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Root mean square of f(a) - sign(a) over a layer's input; a mean, because the number of images varies.

    Args:
        sums: of `activation_sums`.

    Returns:
        0-d tensors under "activation_error" (published curve) and "activation_error_current", each alone, the
        sum over the layers, and as ".../<layer>". NaN for a layer that saw nothing; empty if there is no layer.
    """
    published = {name: (total[0] / total[2]).sqrt() for name, total in sums.items()}
    current = {name: (total[1] / total[2]).sqrt() for name, total in sums.items()}
    return _with_total("activation_error", published) | _with_total("activation_error_current", current)


def _distance(x: Tensor, estimator: Estimator, o_end: float | None) -> Tensor:
    wide = widen(x)
    curve = estimator.curve(wide) if o_end is None or not estimator.has_power else root_curve(wide, o_end)
    return curve - estimator(wide)


def _add(sums: Tensor, o_end: float, layer: BinaryLayer, inputs: tuple[Tensor, ...]) -> None:
    estimator = layer.activation_estimator
    assert estimator is not None
    x = inputs[0] if layer.activation_quantizer is None else layer.activation_quantizer(inputs[0])
    for place, power in enumerate((o_end, None)):
        sums[place] += _distance(x, estimator, power).square().sum(dtype=torch.float64)
    sums[2] += x.numel()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within: `model` in eval mode; afterwards each of its modules as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _with_total(kind: str, per_layer: dict[str, Tensor]) -> dict[str, Tensor]:
    if not per_layer:
        return {}
    total = torch.stack(list(per_layer.values())).sum()
    return {kind: total} | {f"{kind}/{name}": value for name, value in per_layer.items()}
