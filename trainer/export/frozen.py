"""The trained network as plain torch layers: the signs of its weights as constants, no estimator."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reste import BinaryConv2d, BinaryLinear, Estimator, binary_layers, binary_weight
from reste.layers import over_channels


def freeze(model: nn.Module) -> nn.Module:
    """A copy of a network in eval mode whose binary layers hold what their latent weights stand for."""
    frozen = copy.deepcopy(model).eval()
    for name, layer in list(binary_layers(frozen)):
        parent, _, child = name.rpartition(".")
        setattr(frozen.get_submodule(parent), child, _Frozen(layer))
    return frozen


class _Frozen(nn.Module):
    """A binary layer with its weight's signs, and its scale where the layer has it."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: BinaryConv2d | BinaryLinear) -> None:
        super().__init__()
        weight, scale = layer.weight.detach(), None
        if layer.weight_estimator is not None:
            weight, scale = binary_weight(layer)
            if scale is not None and layer.scale == "before":
                weight, scale = weight * over_channels(scale, weight.dim() - 1), None
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("scale", None if scale is None else scale.detach().clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.shape = None
        if isinstance(layer, BinaryConv2d):
            # Paddings of other kinds than zeros are in none of the networks.
            assert layer.padding_mode == "zeros"
            self.shape = (layer.stride, layer.padding, layer.dilation, layer.groups)
        self.zero = _value_of_zero(layer.activation_estimator)
        # More values than a sign has: the estimator itself rounds to them, at its own thresholds to the last bit.
        self.rounding = None if is_sign(layer.activation_estimator) else layer.activation_estimator
        self.quantizer = layer.activation_quantizer if layer.activation_bits == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's."""
        x = x if self.quantizer is None else self.quantizer(x)
        if self.rounding is not None:
            x = self.rounding(x)
        elif self.zero == "zero":
            x = x.sign()
        elif self.zero == "one":
            x = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
        if self.shape is None:
            y, bias = F.linear(x, self.weight), self.bias
        else:
            y = F.conv2d(x, self.weight, None, *self.shape)
            bias = None if self.bias is None else self.bias[:, None, None]
        y = y if self.scale is None else y * over_channels(self.scale, 0 if self.shape is None else 2)
        return y if bias is None else y + bias


def is_sign(estimator: Estimator | None) -> bool:
    """Whether it gives -1 and 1 and nothing else, or is not there at all."""
    return estimator is None or estimator.values == (-1.0, 1.0)


def _value_of_zero(estimator: Estimator | None) -> str | None:
    return None if estimator is None else str(getattr(estimator, "zero", "one"))
