"""ReSTE written the plain way, to hold ours against: eager float32, masks by index, host numbers out of tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reste import BinaryConv2d


class NaiveSign(torch.autograd.Function):
    """sign(x) with ReSTE's slope, threshold 1.5 and knee 0.1; x of any shape, power 0-d."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, power: Tensor) -> Tensor:
        """The sign; keeps the whole input for the backward pass."""
        ctx.save_for_backward(x, power)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Three writes through masks, and `math.pow` of a tensor."""
        x, power = ctx.saved_tensors
        slope = torch.ones_like(gradient)
        inner = (x <= 0.1) & (x >= -0.1)
        outer = ~inner
        slope[inner] = math.pow(0.1, 1 / power) / 0.1
        slope[outer] = (1 / power) * torch.pow(torch.abs(x[outer]), (1 - power) / power)
        slope[(x > 1.5) | (x < -1.5)] = 0
        return gradient * slope, None


class NaiveConv(nn.Conv2d):
    """A convolution of naive signs, scaled before; shapes as in `nn.Conv2d`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("power", torch.tensor(2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W')."""
        weight = NaiveSign.apply(self.weight, self.power) * self.weight.abs().mean()
        return F.conv2d(NaiveSign.apply(x, self.power), weight, self.bias, self.stride, self.padding)


def make_naive(model: nn.Module) -> nn.Module:
    """The model with every binary convolution replaced by a naive one of the same weight, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, BinaryConv2d):
            plain = NaiveConv(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, bias=False
            )
            plain.weight = layer.weight
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, plain)
    return model
