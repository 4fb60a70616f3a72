"""Real-to-Binary Net (Martinez et al., ICLR 2020): each output channel's scale is computed from the real input.

A block is batch norm -> sign -> 3x3 convolution -> channel scale -> PReLU, plus its shortcut (that of Bi-Real Net). The
scale (`ChannelGate`) sees what the sign throws away: the mean of each input channel before the sign. Stem (convolution,
batch norm, PReLU, max pool), shortcuts, gates and classifier are in full precision; the gates cost next to nothing.

The family's own choices: `ste` with clip 1 on both sides, and no scale from the weights, as the gate is one. The
authors published no code: structure and sizes are those of larq's version (github.com/larq/zoo), which gives the stem a
PReLU (where its comment says ReLU). There batch norms keep 0.99 of their statistics a step and latent weights are kept
in [-1, 1]; here batch norms are torch's, and weights are free. It is trained in stages, from a real network to a binary
one.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models.binarization import ConvMaker
from models.entry import build, default_cfg
from models.parts import averaging_shortcut, he_convolutions_and_linear
from models.staged import SMALL, BlockNet

REDUCTION = 8
"""Input channels for each hidden unit of a gate."""


class ChannelGate(nn.Module):
    """A factor in (0, 1) for each output channel: sigmoid(E relu(R m)), m the mean of each input channel over pixels.

    R maps to an eighth of the input channels, E to the output channels; neither has a bias.

    Shape: (B, in_channels, H, W) -> (B, out_channels, 1, 1).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = max(in_channels // REDUCTION, 1)
        self.reduce = nn.Linear(in_channels, hidden, bias=False)
        self.expand = nn.Linear(hidden, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.expand(F.relu(self.reduce(x.mean((2, 3))))).sigmoid()[:, :, None, None]


class RealToBinaryUnit(nn.Module):
    """Batch norm, one binary 3x3 convolution times its gate, PReLU, and the shortcut around all.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, conv: ConvMaker) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.binary_conv = conv(in_channels, out_channels, stride)
        self.gate = ChannelGate(in_channels, out_channels)
        self.act = nn.PReLU(out_channels)
        self.downsample = averaging_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        normal = self.bn1(x)
        return self.act(self.binary_conv(normal) * self.gate(normal)) + self.downsample(x)


OWN = {"estimator": "ste", "scaling": "none"}
"""The family's choices where the caller makes none."""

_facts = {
    "first_conv": "conv1",
    "classifier": "fc",
    "origin_url": "https://github.com/larq/zoo",
    "paper_ids": "arXiv:2003.11535",
}
default_cfgs = generate_default_cfgs(
    {
        "real_to_binary18_1w1a": default_cfg(size=224, num_classes=1000, **_facts),
        "real_to_binary20_1w1a": default_cfg(size=32, num_classes=10, **_facts),
    }
)


def _build(variant: str, pretrained: bool, taps: int, **kwargs: Any) -> BlockNet:
    parts = {"block": RealToBinaryUnit, "stem_act": nn.PReLU, "init": he_convolutions_and_linear}
    return build(BlockNet, variant, pretrained, taps, own=OWN, **parts, **kwargs)


@register_model
def real_to_binary18_1w1a(pretrained: bool = False, **kwargs: Any) -> BlockNet:
    """Real-to-Binary Net with the shape of ResNet-18, for ImageNet: 16 binary convolutions."""
    return _build("real_to_binary18_1w1a", pretrained, 5, depths=(4, 4, 4, 4), **kwargs)


@register_model
def real_to_binary20_1w1a(pretrained: bool = False, **kwargs: Any) -> BlockNet:
    """Real-to-Binary Net of 20 layers for images of 32 pixels: 18 binary convolutions."""
    return _build("real_to_binary20_1w1a", pretrained, 4, **SMALL, **kwargs)
