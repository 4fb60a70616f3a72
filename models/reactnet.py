"""ReActNet (Liu et al., ECCV 2020): thresholds of signs and shapes of activations are learned, channel by channel.

RSign is the sign with a learned threshold: the quantiser `shift` before the sign. RPReLU is a PReLU whose input and
output are moved (`RPReLU`). In the ResNet form a block is RSign -> 3x3 convolution -> batch norm, plus the shortcut
of Bi-Real Net, then RPReLU: it comes after the sum, and no identity path leads around it.

ReActNet-A has MobileNet's shape, in binary: RSign -> 3x3 convolution -> batch norm, plus shortcut, RPReLU; RSign -> 1x1
convolution -> batch norm, plus shortcut, RPReLU. Shortcuts hold no weights: a stride is a 2x2 mean, and where channels
double, the shortcut is laid beside itself. (The paper writes the doubling 1x1 convolution as two beside each other,
from one RSign: with a scale and a batch norm per channel that is the same function with the same number of parameters.)

Stem and classifier are in full precision, in the ResNet form the 1x1 convolutions of shortcuts too. The family's own
choices besides `shift` are those of Bi-Real Net (`models.bireal`). Structure: github.com/liuzechun/ReActNet. It is
trained in two stages, each under a teacher: first with real weights, then binary, from those weights.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from models import bireal
from models.binarization import ConvMaker
from models.entry import build, default_cfg
from models.parts import averaging_shortcut, mean_pool
from models.staged import SMALL, BlockNet


class RPReLU(nn.Module):
    """PReLU with a moved input and a moved output, all per channel: y = prelu(x + before) + after.

        prelu(z) = z            for z > 0
                 = slope * z    else

    Starts as PReLU does, with a slope of 1/4 and no moves. Shape: (B, C, H, W) to the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.after = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        # Under autocast x is low precision and the parameters are not; the sums must not widen the result.
        before, slope, after = (p.to(x.dtype) for p in (self.before, self.slope, self.after))
        return F.prelu(x + before[:, None, None], slope) + after[:, None, None]


class ReActUnit(nn.Module):
    """One binary 3x3 convolution, batch norm, the shortcut around both, RPReLU.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, conv: ConvMaker) -> None:
        super().__init__()
        self.binary_conv = conv(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.downsample = averaging_shortcut(in_channels, out_channels, stride)
        self.rprelu = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.rprelu(self.bn1(self.binary_conv(x)) + self.downsample(x))


class ReActBlock(nn.Module):
    """A binary 3x3 convolution on as many channels, then a binary 1x1 convolution to as many or twice as many.

    Shape: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: `out_channels` is neither `in_channels` nor twice that: there is no shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, conv: ConvMaker) -> None:
        super().__init__()
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(f"a ReActNet-A block keeps or doubles its channels: {in_channels} to {out_channels}")
        self.copies = out_channels // in_channels
        self.binary_3x3 = conv(in_channels, in_channels, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pooling = mean_pool(stride)
        self.rprelu1 = RPReLU(in_channels)
        self.binary_pw = conv(in_channels, out_channels, 1, kernel_size=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.rprelu2 = RPReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.rprelu1(self.bn1(self.binary_3x3(x)) + self.pooling(x))
        around = torch.cat((x,) * self.copies, 1) if self.copies > 1 else x
        return self.rprelu2(self.bn2(self.binary_pw(x)) + around)


OWN = bireal.OWN | {"activation_quantizer": "shift"}
"""The family's choices where the caller makes none."""

_facts = {
    "first_conv": "conv1",
    "classifier": "fc",
    "origin_url": "https://github.com/liuzechun/ReActNet",
    "paper_ids": "arXiv:2003.03488",
}
_imagenet_cfg = default_cfg(size=224, num_classes=1000, **_facts)
default_cfgs = generate_default_cfgs(
    {
        "reactnet18_1w1a": _imagenet_cfg,
        "reactnet_a_1w1a": _imagenet_cfg,
        "reactnet20_1w1a": default_cfg(size=32, num_classes=10, **_facts),
    }
)


def _build(variant: str, pretrained: bool, taps: int, **kwargs: Any) -> BlockNet:
    return build(BlockNet, variant, pretrained, taps, own=OWN, **kwargs)


@register_model
def reactnet18_1w1a(pretrained: bool = False, **kwargs: Any) -> BlockNet:
    """ReActNet with the shape of ResNet-18, for ImageNet: 16 binary convolutions."""
    return _build("reactnet18_1w1a", pretrained, 5, depths=(4, 4, 4, 4), block=ReActUnit, **kwargs)


@register_model
def reactnet_a_1w1a(pretrained: bool = False, **kwargs: Any) -> BlockNet:
    """ReActNet-A, with the shape of MobileNet, for ImageNet: 26 binary convolutions, 13 of them 1x1."""
    shape = {"depths": (1, 2, 2, 6, 2), "widths": (64, 128, 256, 512, 1024)}
    stem = {"stem": (3, 2), "stem_width": 32, "stem_pool": False}
    return _build("reactnet_a_1w1a", pretrained, 6, block=ReActBlock, **shape, **stem, **kwargs)


@register_model
def reactnet20_1w1a(pretrained: bool = False, **kwargs: Any) -> BlockNet:
    """ReActNet of 20 layers for images of 32 pixels: 18 binary convolutions."""
    return _build("reactnet20_1w1a", pretrained, 4, block=ReActUnit, **SMALL, **kwargs)
