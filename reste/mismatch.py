"""How far an estimator's gradient is from what the loss really does: two cosines a layer, by forward passes.

With a layer's latent weight W (n entries), everything else fixed, L the loss and c = dL/dW as the estimator gives it,
the coarse gradient:

    discrete    CDG_i = [L(W + h e_i) - L(W - h e_i)] / (2 h)                cos(c, CDG) over some coordinates i
    smoothed    g = grad E L(W + h u) = E u [L(W + h u) - L(W - h u)] / (2 h),  u ~ N(0, I)          cos(c, g)

The first is the coordinate discrete gradient of BinaryDuo (Kim et al., ICLR 2020), written here from its name and not
from the paper's text, with the step h on both sides and weights that are binary, too: where |W_i| > h neither step
turns the sign and CDG_i is 0. The second is the gradient of the loss smoothed over a neighbourhood, which exists though
the loss is a step function of W.

With M directions u_m and d_m = [L(W + h u_m) - L(W - h u_m)] / (2 h), the mean of d_m (u_m . c) estimates <g, c>, and
the mean of d_m d_k (u_m . u_k) over m != k estimates |g|^2, both without bias; that needs some sqrt(n) directions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .buffers import buffers_kept
from .curves import widen
from .layers import BinaryLayer, binary_layers

Loss = Callable[[], Tensor]


def gradient_mismatch(
    model: nn.Module, loss: Loss, *, step: float = 1.0, coordinates: int = 64, directions: int = 64, seed: int = 0
) -> dict[str, Tensor]:
    """Cosines between an estimator's gradient and those of the first lines of this module, for each layer with signs.

    It is the weight that is moved, binary or not: a real one behind binary activations is what CDG was defined for.

    It costs 2 (coordinates + directions) forward passes for each layer: a study, not a probe. Weights, gradients and
    buffers of the model are afterwards as they were. Noise, if there is any, must be the same in each call of `loss`.

    Args:
        model: used in the mode that it is in.
        loss: runs it, always on the same batch; 0-d.
        step: h, in units of the mean magnitude of the layer's latent weights; > 0.
        coordinates: entries of each weight, drawn without replacement; all if there are fewer. 0 leaves this one out.
        directions: M, for the smoothed gradient, >= 2; 0 leaves it out.
        seed: of coordinates and directions.

    Returns:
        0-d tensors under "discrete_cosine/<layer>" and "smoothed_cosine/<layer>"; 0 where a gradient is 0, NaN where
        so few directions find no positive |g|^2.

    Raises:
        ValueError: a number out of its range.
    """
    if not step > 0 or coordinates < 0 or directions < 0 or directions == 1:
        raise ValueError(
            f"step must be > 0, coordinates >= 0 and directions 0 or >= 2; got {step}, {coordinates} and {directions}"
        )
    layers = {
        name: layer for name, layer in binary_layers(model) if layer.weight_bits == 1 or layer.activation_bits == 1
    }
    found: dict[str, Tensor] = {}
    if not layers:
        return found
    with buffers_kept(model):
        coarse = torch.autograd.grad(loss(), [layer.weight for layer in layers.values()])
        for number, ((name, layer), gradient) in enumerate(zip(layers.items(), coarse, strict=True)):
            generator = torch.Generator().manual_seed(seed + number)
            if coordinates:
                found[f"discrete_cosine/{name}"] = _discrete(layer, loss, gradient, step, coordinates, generator)
            if directions:
                found[f"smoothed_cosine/{name}"] = _smoothed(layer, loss, gradient, step, directions, generator)
    return found


def _discrete(
    layer: BinaryLayer, loss: Loss, gradient: Tensor, step: float, count: int, generator: torch.Generator
) -> Tensor:
    chosen = torch.randperm(layer.weight.numel(), generator=generator)[:count].tolist()
    differences = []
    for place in chosen:
        unit = torch.zeros_like(layer.weight, memory_format=torch.contiguous_format)
        unit.view(-1)[place] = 1
        differences.append(_difference(layer, loss, unit, step))
    coarse = widen(gradient).reshape(-1)[chosen]
    discrete = torch.stack(differences).to(coarse.dtype)
    sizes = torch.linalg.vector_norm(discrete) * torch.linalg.vector_norm(coarse)
    return torch.where(sizes == 0, 0.0, discrete @ coarse / sizes)


def _smoothed(
    layer: BinaryLayer, loss: Loss, gradient: Tensor, step: float, count: int, generator: torch.Generator
) -> Tensor:
    weight, coarse = layer.weight, widen(gradient)
    drawn = [torch.randn(weight.shape, generator=generator, dtype=coarse.dtype).to(weight.device) for _ in range(count)]
    d = torch.stack([_difference(layer, loss, u.to(weight.dtype), step) for u in drawn]).to(coarse.dtype)
    u = torch.stack(drawn).flatten(1)
    product = (d * (u @ coarse.reshape(-1))).mean()
    pairs = (d[:, None] * d * (u @ u.T)).fill_diagonal_(0).sum() / (count * (count - 1))
    cosine = product / (torch.linalg.vector_norm(coarse) * pairs.sqrt())
    return torch.where((product == 0) & (pairs >= 0), 0.0, cosine)


@torch.no_grad()
def _difference(layer: BinaryLayer, loss: Loss, direction: Tensor, step: float) -> Tensor:
    """[L(W + h u) - L(W - h u)] / (2 h), 0-d in float32 or better."""
    before = layer.weight.clone()
    size = step * before.abs().mean()
    try:
        layer.weight.copy_(before + size * direction)
        above = widen(loss())
        layer.weight.copy_(before - size * direction)
        return (above - widen(loss())) / (2 * size)
    finally:
        layer.weight.copy_(before)
