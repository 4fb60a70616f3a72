"""The parts that are injected into a family: shortcuts and initialisers."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Callable[[int, int, int], nn.Module]
"""(in_channels, out_channels, stride) -> the path around a block."""


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity where shapes agree, else a full-precision 1x1 convolution and batch norm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def padding_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity where shapes agree, else the parameter-free option A of He et al. 2015, section 4.2."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return SubsampleAndPad(out_channels - in_channels, stride)


def averaging_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity where shapes agree, else `mean_pool`, a full-precision 1x1 convolution and batch norm.

    Every pixel reaches the sum, where the stride of `projection_shortcut` drops three of four (He et al., Bag of
    Tricks, CVPR 2019; Liu et al., Bi-Real Net, ECCV 2018). At an odd edge the mean is over the pixels that there are.
    """
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(
        mean_pool(stride),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def mean_pool(stride: int) -> nn.Module:
    """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)), as a convolution of that stride has; 1: identity."""
    return nn.Identity() if stride == 1 else nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)


class SubsampleAndPad(nn.Module):
    """Every `stride`-th pixel, with `extra` channels of zeros, half of them in front and half behind.

    Shape: (B, C, H, W) -> (B, C + extra, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.front, self.behind, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.behind))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.front}+{self.behind}, stride={self.stride}"


TIE_BREAK = 2.0**-10
"""First bias of the batch norms in front of signs, in standard deviations."""


def break_ties(model: nn.Module) -> None:
    """Start every `BatchNorm2d` bias at `TIE_BREAK` instead of 0.

    A binary convolution's outputs are whole multiples of one number, so some of them are their channel's mean
    exactly. With a bias of 0 these come out as the rounding noise around 0, and the order of additions, and with it
    the number of ranks, decides their signs. A small bias decides them alike everywhere: +1, as the sign of 0.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, TIE_BREAK)


# Initialisers run through `model.apply`. A layer they do not name keeps PyTorch's own initialisation.


def he_convolutions(module: nn.Module) -> None:
    """Convolutions ~ N(0, 2 / fan_in)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)


def he_convolutions_and_linear(module: nn.Module) -> None:
    """Convolutions and linear weights ~ N(0, 2 / fan_in)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def vgg_normal(module: nn.Module) -> None:
    """Convolutions ~ N(0, 2 / fan_out); linear weights ~ N(0, 0.01^2), biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def pytorch_default(module: nn.Module) -> None:
    """Nothing: every layer keeps PyTorch's own initialisation."""
