"""From one stage's network to the next one's: what is inherited, tensor by tensor, and counted.

A stage that starts from another must inherit all of it. The loader that skips what it does not recognise is how one
published training lost 96 % of its weights on the way (methods that load "non-strictly" do not notice).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.binary_duo import BinaryDuo
from reste import binary_layers


@dataclass(frozen=True)
class Inherited:
    """What a network got from another.

    Attributes:
        tensors: how many of its parameters and buffers.
        numbers: how many numbers these hold.
        fresh: names of its tensors that the other one has nothing for; they keep their initial values.
    """

    tensors: int
    numbers: int
    fresh: tuple[str, ...] = ()


Transfer = Callable[[nn.Module, nn.Module], Inherited]
"""(source, target) -> what the target inherited; the source stays as it is."""


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> Inherited:
    """Copy every tensor of the source to that of the same name.

    Raises:
        ValueError: the source has a tensor that the target lacks or has in another shape: it would be lost.
    """
    given, taken = source.state_dict(), target.state_dict()
    lost = [name for name, tensor in given.items() if name not in taken or taken[name].shape != tensor.shape]
    if lost:
        raise ValueError(f"{len(lost)} tensors of the stage before have no place in this one, the first is {lost[0]}")
    for name, tensor in given.items():
        taken[name].copy_(tensor)
    fresh = tuple(name for name in taken if name not in given)
    return Inherited(len(given), sum(tensor.numel() for tensor in given.values()), fresh)


SHIFT = 0.25
"""What BinaryDuo's copies are moved apart by: each way."""
_PROPORTIONAL = ("layer", "channel", "channel_detached")


@torch.no_grad()
def decouple(source: nn.Module, target: nn.Module) -> Inherited:
    """Make the decoupled BinaryDuo compute what the coupled one computes (Kim et al., ICLR 2020).

    Both copies of a channel inherit the batch norm of the one; where copies are born (`BinaryDuo.shifted`) the bias of
    the first is 1/4 less and that of the second 1/4 more. A convolution's weights are halved and used for both: its sum
    is that of the ternary activations, as the scale of the halved weights is half of theirs.

    Raises:
        ValueError: these are not the coupled and the decoupled network of one size, their activations or scales are
            others than this holds for, or a tensor has no place.
    """
    if [getattr(net, "copies", None) for net in (source, target)] != [1, 2]:
        raise ValueError(
            "decouple leads from a coupled BinaryDuo network to the decoupled one of its size: "
            "binary_duo18_coupled_1w2a to binary_duo18_1w1a, binary_duo20_coupled_1w2a to binary_duo20_1w1a"
        )
    assert isinstance(target, BinaryDuo)
    _require_equivalence(source, "ternary_duo")
    _require_equivalence(target, "heaviside")
    _require_same_weights(source, target)
    given, taken = source.state_dict(), target.state_dict()
    lost = [name for name, tensor in given.items() if name not in taken or _doubled(tensor, taken[name]) is None]
    lost += [name for name in taken if name not in given]
    if lost:
        raise ValueError(
            f"{len(lost)} tensors differ by more than their copies, the first is {lost[0]}: use networks of one size"
        )
    for name, tensor in given.items():
        taken[name].copy_(_doubled(tensor, taken[name]))
    for path in target.shifted:
        lower, upper = taken[f"{path}.bias"].chunk(2)
        lower -= SHIFT
        upper += SHIFT
    return Inherited(len(taken), sum(tensor.numel() for tensor in taken.values()))


def _require_equivalence(model: nn.Module, estimator: str) -> None:
    for name, layer in binary_layers(model):
        used = getattr(layer.activation_estimator, "name", "none")
        if used != estimator:
            raise ValueError(f"{name}: decouple needs estimator.name={estimator} there, which is {used}")
        if layer.activation_quantizer is not None and layer.activation_quantizer.name != "shift":
            raise ValueError(
                f"{name}: decouple gives each copy the input of the one, which {layer.activation_quantizer.name} does "
                "not do channel by channel: use quantizer.activation=none or shift"
            )
        if layer.weight_estimator is not None and len(layer.weight_estimator.values) > 2:
            raise ValueError(
                f"{name}: decouple halves weights, which changes the level of one of several: give weights an "
                "estimator of two values (estimator.weights)"
            )
        scaling = None if layer.scaling is None else layer.scaling.name
        if layer.weight_bits == 1 and (scaling not in _PROPORTIONAL or layer.weight_quantizer is not None):
            raise ValueError(
                f"{name}: decouple halves weights, and their scale has to follow: use quantizer.scaling=layer or "
                "channel, and no quantizer.weight"
            )


def _require_same_weights(source: nn.Module, target: nn.Module) -> None:
    for (name, ours), (_, theirs) in zip(binary_layers(source), binary_layers(target), strict=False):
        kinds = [(layer.weight_bits, getattr(layer.scaling, "name", None)) for layer in (ours, theirs)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{name}: weights of {kinds[0][0]} bits scaled by {kinds[0][1]} would become such of {kinds[1][0]} "
                f"bits scaled by {kinds[1][1]}: use the same model.weight_bits and quantizer.scaling in both stages"
            )


def _doubled(tensor: Tensor, like: Tensor) -> Tensor | None:
    """What a tensor becomes where everything has two copies, in the shape of `like`; None if that is another one."""
    if tensor.shape == like.shape:
        return tensor
    if tensor.dim() == 1 and like.shape == (2 * len(tensor),):
        return torch.cat((tensor, tensor))
    if tensor.dim() == 4 and like.shape == (len(tensor), 2 * tensor.shape[1], *tensor.shape[2:]):
        return torch.cat((tensor, tensor), 1) / 2
    return None


TRANSFERS: dict[str, Transfer] = {"copy": copy_weights, "decouple": decouple}
"""Name -> the way from one network to another."""
