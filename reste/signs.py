"""What the signs of the weights do in training: how many turn, how many cannot, how evenly they are spread.

Each is a share of the layer's weights, or the entropy of one, looked at behind the quantiser as in eval mode; the
number without a layer's name is that of all binary weights together. Everything is a 0-d float32 tensor on the device
of the weights, and nothing is read to the host.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .estimators import Estimator
from .functional import binary_sign
from .indicators import evaluated_weight
from .kernels.reference import pack_signs, unpack_signs
from .layers import binary_layers


@torch.no_grad()
def sign_entropy(weight: Tensor) -> Tensor:
    """Entropy of the signs of a weight of any shape, in bits: 1 if half are +1, 0 if all are alike.

    H = -p log2 p - (1 - p) log2(1 - p),    p the share of +1
    """
    share = (weight >= 0).float().mean()
    both = torch.stack([share, 1 - share])
    return -(both * both.clamp(min=torch.finfo(both.dtype).tiny).log2()).sum()


def dead_share(weight: Tensor, estimator: Estimator) -> Tensor:
    """Share of the entries of a weight of any shape at which the estimator's slope is 0: no gradient moves them.

    The slope is the derivative of the estimator's curve, which is what its backward pass multiplies with.
    """
    with torch.enable_grad():
        leaf = weight.detach().float().requires_grad_()
        (slope,) = torch.autograd.grad(estimator.curve(leaf).sum(), leaf)
    return (slope == 0).float().mean()


class SignMemory:
    """The signs at the last look, to say how many have turned since; one byte for a weight.

    Who saves a training saves `state`, too, so that a resumed one misses no flip.
    """

    def __init__(self) -> None:
        self._signs: dict[str, Tensor] = {}

    @torch.no_grad()
    def look(self, model: nn.Module) -> dict[str, Tensor]:
        """Indicators of the signs of `model` as they are, and keep the signs.

        Returns:
            0-d tensors under "sign_entropy", "dead_share" and, from the second look on, "flip_rate" (share of the signs
            that are not what they were at the look before), each alone, over all binary weights, and as ".../<layer>".
            Empty if no layer has a binary weight.
        """
        found: dict[str, dict[str, Tensor]] = {"sign_entropy": {}, "dead_share": {}, "flip_rate": {}}
        sizes: dict[str, int] = {}
        for name, layer in binary_layers(model):
            if layer.weight_estimator is None:
                continue
            weight, sizes[name] = evaluated_weight(layer), layer.weight.numel()
            found["sign_entropy"][name] = sign_entropy(weight)
            found["dead_share"][name] = dead_share(weight, layer.weight_estimator)
            negative = binary_sign(weight) < 0
            before = self._signs.get(name)
            if before is not None and before.shape == negative.shape:
                found["flip_rate"][name] = (before != negative).float().mean()
            self._signs[name] = negative
        return {key: value for kind, layers in found.items() for key, value in _with_mean(kind, layers, sizes).items()}

    def state(self) -> dict[str, Tensor]:
        """The signs, one bit each, as uint8 (ceil(n / 8),) by the name of the layer; empty before the first look."""
        return {name: pack_signs(-negative.flatten().char()) for name, negative in self._signs.items()}

    def load_state(self, state: Mapping[str, Tensor], model: nn.Module) -> None:
        """Go on from what `state` gave for the same network, on the devices of its weights."""
        weights = {name: layer.weight for name, layer in binary_layers(model)}
        self._signs = {
            name: unpack_signs(bits, weights[name].shape, torch.int8).to(weights[name].device) < 0
            for name, bits in state.items()
        }


def _with_mean(kind: str, per_layer: dict[str, Tensor], sizes: dict[str, int]) -> dict[str, Tensor]:
    """The values, and their mean over all weights."""
    if not per_layer:
        return {}
    total = sum(sizes[name] for name in per_layer)
    mean = torch.stack([value * (sizes[name] / total) for name, value in per_layer.items()]).sum()
    return {kind: mean} | {f"{kind}/{name}": value for name, value in per_layer.items()}
